/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shim.h - the hot path of pykvm: create a VM, give it memory, run a vCPU.
 *
 * Every function returns a value that is not negative, or -errno. None prints, allocates, or decides anything: what
 * to do about an exit is Python's business. See Documentation/virt/kvm/api.rst for each ioctl.
 */
#ifndef PYKVM_SHIM_H
#define PYKVM_SHIM_H

#include <stdatomic.h>
#include <stdint.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>

/*
 * What is younger than the oldest kernel headers pykvm builds with (Linux 6.1). The kernel's ABI never changes, so
 * these are copies of constants, not guesses; a younger header is held against them.
 */
#ifdef KVM_EXIT_MEMORY_FAULT
_Static_assert(KVM_EXIT_MEMORY_FAULT == 39, "the kernel's ABI changed");
#else
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#ifdef KVM_CAP_MEMORY_FAULT_INFO
_Static_assert(KVM_CAP_MEMORY_FAULT_INFO == 232, "the kernel's ABI changed");
#else
#define KVM_CAP_MEMORY_FAULT_INFO 232
#endif
#ifdef KVM_MEMORY_EXIT_FLAG_PRIVATE
_Static_assert(KVM_MEMORY_EXIT_FLAG_PRIVATE == 8, "the kernel's ABI changed");
#else
#define KVM_MEMORY_EXIT_FLAG_PRIVATE 8
#endif

/* The memory_fault member of struct kvm_run's union, which is at the address of the member hw. */
struct pykvm_memory_fault {
	uint64_t flags;
	uint64_t gpa;
	uint64_t size;
};

/* A vCPU. The caller owns the structure and keeps it alive from pykvm_create_vcpu() to pykvm_close_vcpu(). */
struct pykvm_vcpu {
	int fd;
	struct kvm_run *run; /* shared with the kernel; run_size bytes */
	uint64_t run_size;
	_Atomic int thread; /* the thread inside KVM_RUN, or 0 */
	_Atomic int kicked; /* the KVM_RUN under way, or the next one, is to return */
	void *timer;	    /* the timer_t of pykvm_start_ticks() */
	int ticking;	    /* whether timer exists */
};

/* One ioctl of several, and what it returns when all is well. The caller keeps what argument points to alive. */
struct pykvm_step {
	int fd;
	int wanted;
	unsigned long request;
	void *argument;
};

int pykvm_open(const char *path);
int pykvm_close(int fd);
int pykvm_ioctl(int fd, unsigned long request, uint64_t argument);
int pykvm_ioctl_pointer(int fd, unsigned long request, void *argument);
int pykvm_issue(const struct pykvm_step *steps, int count, int *result);
int pykvm_map(int fd, uint64_t offset, uint64_t size, void **mapping);
int pykvm_unmap(void *mapping, uint64_t size);

int pykvm_create_vm(int kvm_fd, uint64_t type);
int pykvm_set_user_memory_region(int vm_fd, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, void *memory);
int64_t pykvm_put_back(void *memory, uint64_t pages, const uint64_t *bitmap, const void *const *saved);

int pykvm_create_vcpu(int vm_fd, uint64_t id, uint64_t run_size, struct pykvm_vcpu *vcpu);
int pykvm_close_vcpu(struct pykvm_vcpu *vcpu);

int pykvm_run(struct pykvm_vcpu *vcpu);
int pykvm_complete(struct pykvm_vcpu *vcpu);
int pykvm_kick(struct pykvm_vcpu *vcpu);
int pykvm_start_ticks(struct pykvm_vcpu *vcpu, uint64_t first_ns, uint64_t interval_ns);
int pykvm_stop_ticks(struct pykvm_vcpu *vcpu);

#endif
