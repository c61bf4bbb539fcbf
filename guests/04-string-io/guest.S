/*
 * 04-string-io: whole strings to a port and from a port, by one instruction each.
 *
 * The serial port is put into loopback, where what is sent comes back: `rep outsb` sends 16 bytes, which wait in the
 * receiver's FIFO, and `rep insb` fetches them. Then loopback is switched off and the copy is printed.
 *
 * Mode:        real mode, 16-bit
 * Loaded at:   0x8000
 * At entry:    CS:IP = 0000:8000, SP = 0x7c00, RFLAGS.IF = 0, direction flag clear
 * Expected:    KVM_EXIT_IO out and in, each with a count that the host's KVM chooses (one exit may carry the whole
 *              string, or one byte); "out and in again" on the serial port; KVM_EXIT_HLT. When the copy differs, the
 *              run ends by the debug-exit port with 1.
 */

        .include "ports.inc"

        .set    LENGTH, 16                      # as much as the FIFO holds

        .code16
        .globl  _start
_start:
        xor     %ax, %ax
        mov     %ax, %ds                        # outs reads from DS:SI
        mov     %ax, %es                        # ins writes to ES:DI
        mov     $SERIAL_FCR, %dx
        mov     $FCR_ENABLE | FCR_CLEAR, %al
        out     %al, (%dx)                      # FCR: FIFOs on, and empty
        mov     $SERIAL_MCR, %dx
        mov     $MCR_LOOP, %al
        out     %al, (%dx)                      # MCR: loopback on

        mov     $sent, %si
        mov     $LENGTH, %cx
        mov     $SERIAL_THR, %dx
        rep outsb                               # THR: CX bytes from DS:SI, all to the same port
        mov     $SERIAL_LSR, %dx
1:      in      (%dx), %al                      # LSR: has the last bit gone round?
        test    $LSR_TEMT, %al
        jz      1b
        mov     $received, %di
        mov     $LENGTH, %cx
        mov     $SERIAL_RBR, %dx
        rep insb                                # RBR: CX bytes to ES:DI, all from the same port

        mov     $sent, %si
        mov     $received, %di
        mov     $LENGTH, %cx
        repe cmpsb                              # did every byte come back?
        jne     differs

        mov     $SERIAL_MCR, %dx
        xor     %al, %al
        out     %al, (%dx)                      # MCR: loopback off, the wire is connected again
        mov     $received, %si
        mov     $LENGTH, %cx
        mov     $SERIAL_THR, %dx
        rep outsb                               # THR: print the copy
        mov     $SERIAL_LSR, %dx
1:      in      (%dx), %al                      # LSR: wait until the FIFO is empty
        test    $LSR_THRE, %al
        jz      1b
        mov     $SERIAL_THR, %dx
        mov     $'\n', %al
        out     %al, (%dx)                      # THR: end the line
        hlt                                     # done

differs:
        mov     $1, %al
        out     %al, $DEBUG_EXIT                # end the run with status 3

sent:
        .ascii  "out and in again"
received:
        .fill   LENGTH, 1, 0
