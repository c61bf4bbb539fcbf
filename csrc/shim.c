/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shim.c - see shim.h.
 *
 * How a vCPU is stopped
 * ---------------------
 * KVM_RUN returns EINTR when its thread takes a signal, and also, without entering the guest, when
 * kvm_run->immediate_exit is set (api.rst, KVM_RUN). A signal alone would be lost if it arrived just before the
 * ioctl; immediate_exit alone would not be seen by a thread that is already in the guest. So whoever wants a vCPU out
 * does both, in this order:
 *
 *      the one who kicks                     the thread that runs the vCPU
 *      -----------------                     -----------------------------
 *      if (kicked) return                    thread = gettid()
 *      kicked = 1, immediate_exit = 1        ioctl(KVM_RUN)
 *      if (thread) signal it
 *
 * Either the kick sees the thread and signals it, or the thread sees immediate_exit: no kick is lost. The
 * flags are cleared only by the running thread, after KVM_RUN has returned EINTR. A kick that arrives while they are
 * being cleared may make one more KVM_RUN return EINTR, which is harmless.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define PAGE_SIZE 4096

/* The shim's own signal: a real-time one, so that nobody else's alarm or child ends up here. */
#define KICK_SIGNAL (SIGRTMIN + 5)

/*
 * What this thread's signal handler knows: the vCPU inside enter(), and that a tick came while there was none. It never
 * holds a vCPU longer than that, because another thread may close it.
 */
static _Thread_local struct pykvm_vcpu *volatile entered_vcpu;
static _Thread_local volatile sig_atomic_t tick_waits;

static int result_or_errno(int result)
{
	return result < 0 ? -errno : result;
}

int pykvm_open(const char *path)
{
	return result_or_errno(open(path, O_RDWR | O_CLOEXEC));
}

int pykvm_close(int fd)
{
	return result_or_errno(close(fd));
}

int pykvm_ioctl(int fd, unsigned long request, uint64_t argument)
{
	return result_or_errno(ioctl(fd, request, argument));
}

int pykvm_ioctl_pointer(int fd, unsigned long request, void *argument)
{
	return result_or_errno(ioctl(fd, request, argument));
}

/*
 * Issue count ioctls, one after another, up to the first that does not return what is wanted; returns how many did.
 * *result is then what that one returned, or -errno.
 */
int pykvm_issue(const struct pykvm_step *steps, int count, int *result)
{
	int done;

	for (done = 0; done < count; done++) {
		*result = result_or_errno(ioctl(steps[done].fd, steps[done].request, steps[done].argument));
		if (*result != steps[done].wanted)
			break;
	}
	return done;
}

/*
 * Map what a descriptor shares with this process beside struct kvm_run: rings. Python's mmap module will not do: it
 * duplicates the descriptor, and takes the size 0 that the kernel tells of it for an error.
 */
int pykvm_map(int fd, uint64_t offset, uint64_t size, void **mapping)
{
	/* SAFETY: the mapping lives until pykvm_unmap(); the caller lets nobody look at it afterwards. */
	*mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
	return *mapping == MAP_FAILED ? -errno : 0;
}

int pykvm_unmap(void *mapping, uint64_t size)
{
	return result_or_errno(munmap(mapping, size));
}

int pykvm_create_vm(int kvm_fd, uint64_t type)
{
	int fd;

	/* KVM_CREATE_VM returns EINTR when a signal arrives while the kernel waits for another VM's tear-down. */
	do
		fd = ioctl(kvm_fd, KVM_CREATE_VM, type);
	while (fd < 0 && errno == EINTR);
	return result_or_errno(fd);
}

int pykvm_set_user_memory_region(int vm_fd, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, void *memory)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uint64_t)(uintptr_t)memory,
	};

	return result_or_errno(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region));
}

/*
 * Make those of memory's pages that bitmap has a bit for what they are in saved: an array of pages, NULL for zeros.
 * bitmap is what KVM_GET_DIRTY_LOG fills: whole words, low bit first. Returns how many there were.
 */
int64_t pykvm_put_back(void *memory, uint64_t pages, const uint64_t *bitmap, const void *const *saved)
{
	int64_t done = 0;

	for (uint64_t first = 0; first < pages; first += 64) {
		/* Each turn takes the lowest bit away. */
		for (uint64_t word = bitmap[first / 64]; word; word &= word - 1) {
			uint64_t page = first + (uint64_t)__builtin_ctzll(word);

			if (page >= pages)
				break;
			/* SAFETY: the caller owns memory and saved, which have this many pages, and keeps them. */
			if (saved[page])
				memcpy((char *)memory + page * PAGE_SIZE, saved[page], PAGE_SIZE);
			else
				memset((char *)memory + page * PAGE_SIZE, 0, PAGE_SIZE);
			done++;
		}
	}
	return done;
}

static void ask_to_leave(struct pykvm_vcpu *vcpu)
{
	atomic_store(&vcpu->kicked, 1);
	/* SAFETY: the kernel reads this byte at each KVM_RUN; a byte store cannot tear. */
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
}

static void forget_immediate_exit(struct pykvm_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
}

static void on_kick_signal(int signal)
{
	(void)signal;
	if (entered_vcpu)
		ask_to_leave(entered_vcpu);
	else
		tick_waits = 1;
}

/* Take the signal unless somebody else in this process has it already: then -EBUSY. */
static int install_kick_handler(void)
{
	struct sigaction ours = { .sa_handler = on_kick_signal };
	struct sigaction now;
	sigset_t set;

	if (sigaction(KICK_SIGNAL, NULL, &now) < 0)
		return -errno;
	if (now.sa_handler == on_kick_signal)
		return 0;
	if (now.sa_handler != SIG_DFL)
		return -EBUSY;
	sigemptyset(&ours.sa_mask);
	if (sigaction(KICK_SIGNAL, &ours, NULL) < 0)
		return -errno;
	sigemptyset(&set);
	sigaddset(&set, KICK_SIGNAL);
	return -pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

int pykvm_create_vcpu(int vm_fd, uint64_t id, uint64_t run_size, struct pykvm_vcpu *vcpu)
{
	int error = install_kick_handler();
	void *run;

	if (error)
		return error;
	memset(vcpu, 0, sizeof(*vcpu));
	vcpu->fd = ioctl(vm_fd, KVM_CREATE_VCPU, id);
	if (vcpu->fd < 0)
		return -errno;
	run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED) {
		error = -errno;
		close(vcpu->fd);
		return error;
	}
	/* SAFETY: the mapping lives until pykvm_close_vcpu(); the caller lets nobody look at it afterwards. */
	vcpu->run = run;
	vcpu->run_size = run_size;
	return vcpu->fd;
}

int pykvm_close_vcpu(struct pykvm_vcpu *vcpu)
{
	pykvm_stop_ticks(vcpu);
	munmap(vcpu->run, vcpu->run_size);
	vcpu->run = NULL;
	return pykvm_close(vcpu->fd);
}

static int enter(struct pykvm_vcpu *vcpu)
{
	int result;

	atomic_store(&vcpu->thread, (int)syscall(SYS_gettid));
	entered_vcpu = vcpu;
	if (tick_waits) {
		tick_waits = 0;
		if (vcpu->ticking)
			ask_to_leave(vcpu);
	}
	/* EAGAIN: a processor that waited for INIT or SIPI was woken and is to be run again. */
	do
		result = ioctl(vcpu->fd, KVM_RUN, 0);
	while (result < 0 && errno == EAGAIN);
	result = result_or_errno(result);
	entered_vcpu = NULL;
	atomic_store(&vcpu->thread, 0);
	return result;
}

/* Run the guest until the next exit. -EINTR: a signal, a tick or a kick; run again to go on. */
int pykvm_run(struct pykvm_vcpu *vcpu)
{
	int result = enter(vcpu);

	if (result == -EINTR) {
		forget_immediate_exit(vcpu);
		atomic_store(&vcpu->kicked, 0);
	}
	return result;
}

/*
 * Let the kernel finish the instruction of the last exit, without running the guest. -EINTR says that it is finished;
 * 0 that the same instruction needs another exit (the next part of a string or of a wide access).
 */
int pykvm_complete(struct pykvm_vcpu *vcpu)
{
	int result;

	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	result = enter(vcpu);
	forget_immediate_exit(vcpu);
	if (atomic_load(&vcpu->kicked))
		ask_to_leave(vcpu);
	return result;
}

/* Make the KVM_RUN under way, or else the next one, return -EINTR. From any thread. */
int pykvm_kick(struct pykvm_vcpu *vcpu)
{
	int thread;

	if (!vcpu->run)
		return -EBADF;
	/* One kick on its way is enough: real-time signals queue up, and the queue has an end (EAGAIN). */
	if (atomic_exchange(&vcpu->kicked, 1))
		return 0;
	ask_to_leave(vcpu);
	thread = atomic_load(&vcpu->thread);
	/* The thread may have left KVM_RUN, or even ended, meanwhile: then there is nobody to wake. */
	if (!thread || syscall(SYS_tgkill, getpid(), thread, KICK_SIGNAL) == 0 || errno == ESRCH)
		return 0;
	atomic_store(&vcpu->kicked, 0);
	return -errno;
}

/*
 * Kick this vCPU after first_ns and then every interval_ns, until pykvm_stop_ticks(). The calling thread is the one
 * that is to run it: ticks make time limits and Ctrl-C work whatever the guest does.
 */
int pykvm_start_ticks(struct pykvm_vcpu *vcpu, uint64_t first_ns, uint64_t interval_ns)
{
	const uint64_t second = 1000000000;
	struct itimerspec when = {
		.it_value = { .tv_sec = (time_t)(first_ns / second), .tv_nsec = (long)(first_ns % second) },
		.it_interval = { .tv_sec = (time_t)(interval_ns / second), .tv_nsec = (long)(interval_ns % second) },
	};
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK_SIGNAL };
	timer_t timer;

	if (vcpu->ticking)
		return -EBUSY;
	event.sigev_notify_thread_id = (int)syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
		return -errno;
	vcpu->timer = timer;
	vcpu->ticking = 1;
	if (timer_settime(timer, 0, &when, NULL) < 0) {
		int error = -errno;

		pykvm_stop_ticks(vcpu);
		return error;
	}
	return 0;
}

int pykvm_stop_ticks(struct pykvm_vcpu *vcpu)
{
	if (!vcpu->ticking)
		return 0;
	vcpu->ticking = 0;
	return result_or_errno(timer_delete(vcpu->timer));
}
