/*
 * 05-mmio: a device that is memory. The guest never executes an I/O instruction: plain moves to addresses where no RAM
 * is reach the serial port.
 *
 * Mode:        32-bit protected mode without paging, set up by the host (a real-mode address ends at 1 MiB)
 * Loaded at:   0x100000
 * At entry:    EIP = 0x100000, ESP = 0x7c00, flat segments of 4 GiB
 * Expected:    KVM_EXIT_MMIO for writes (1 byte) and for reads (1 and 4 bytes); "Hello through memory" on the serial
 *              port; KVM_EXIT_HLT. When the scratch register forgets what was written, the debug-exit port gets 1.
 */

        .include "ports.inc"

        .set    THR, SERIAL_MMIO + 0            # the same registers as at port 0x3f8, one byte each
        .set    MCR, SERIAL_MMIO + 4
        .set    LSR, SERIAL_MMIO + 5
        .set    SCR, SERIAL_MMIO + 7            # scratch register: a byte of storage without a meaning

        .code32
        .globl  _start
_start:
        movb    $0x5a, SCR                      # MMIO write of 1 byte
        mov     MCR, %eax                       # MMIO read of 4 bytes: MCR, LSR, MSR and SCR at once
        shr     $24, %eax                       # the highest byte came from the highest address
        cmp     $0x5a, %al
        jne     forgotten

        mov     $message, %esi
next:
        testb   $LSR_THRE, LSR                  # MMIO read inside an arithmetic instruction: KVM decodes it
        jz      next
        lodsb
        test    %al, %al
        jz      done
        mov     %al, THR                        # MMIO write of 1 byte: send it
        jmp     next
done:
        hlt                                     # done

forgotten:
        mov     $1, %al
        out     %al, $DEBUG_EXIT                # end the run with status 3

message:
        .asciz  "Hello through memory\n"
