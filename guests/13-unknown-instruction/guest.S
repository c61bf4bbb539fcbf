/*
 * 13-unknown-instruction: an instruction that the CPU knows and KVM does not.
 *
 * A move to or from a device's memory stops the CPU, but the CPU does not say what the instruction wanted: KVM reads
 * the instruction and carries it out in its own emulator. That emulator knows the instructions which drivers use, not
 * all of them; popcnt is one that it does not know.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Expected:    a line on the serial port, then KVM_EXIT_INTERNAL_ERROR with suberror 1,
 *              KVM_INTERNAL_ERROR_EMULATION, and the bytes of the instruction. Should a KVM learn popcnt one day, the
 *              guest goes on: a second line, and the debug-exit port gets 1.
 */

        .include "ports.inc"
        .include "print.inc"

        .set    MCR, SERIAL_MMIO + 4            # four registers of the serial port: MCR, LSR, MSR, SCR

        .code64
        .globl  _start
_start:
        mov     $before, %esi
        call    print_string
        mov     $MCR, %ebx
        popcnt  (%rbx), %eax                    # MMIO read of 4 bytes, by an instruction that KVM cannot emulate
        mov     $after, %esi
        call    print_string
        mov     $1, %al
        out     %al, $DEBUG_EXIT                # end the run with status 3

        define_print_string print_string

before:
        .asciz  "counting the bits of a device's registers\n"
after:
        .asciz  "counted: this KVM knows popcnt\n"
