/*
 * 18-serial-irq: a serial driver that is called instead of asking, with a ring buffer for each direction.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT; the PICs and the
 *              UART in their reset state
 * Expected:    a line comes back in capital letters after "> ", every byte of it moved by the handler of IRQ 4; the
 *              CPU is halted whenever there is nothing to do, and at the end with RFLAGS.IF = 0
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "idt64.inc"
        .include "pic.inc"

        .set    SERIAL_IER,     SERIAL + 1      # Interrupt Enable Register
        .set    SERIAL_IIR,     SERIAL + 2      # read: Interrupt Identification Register
        .set    SERIAL_MSR,     SERIAL + 6      # Modem Status Register

        .set    IER_RECEIVED,   0x01            # call when data has been received
        .set    IER_THR_EMPTY,  0x02            # call when THR takes a byte
        .set    FCR_TRIGGER_8,  0x80            # call when 8 bytes have come, or when the line falls silent
        .set    MCR_DTR_RTS,    0x03            # "I am here, and ready": the other end may want to know
        .set    MCR_OUT2,       0x08            # on a PC this lets the UART's interrupt out of the card

        .set    IIR_WHICH,      0x0f            # the interrupt with the highest priority:
        .set    IIR_NONE,       0x01            #     none is pending
        .set    IIR_LINE,       0x06            #     line status: an error; gone when LSR is read
        .set    IIR_RECEIVED,   0x04            #     data up to the trigger level; gone when it is below
        .set    IIR_TIMEOUT,    0x0c            #     data, and no more has come for a while; gone when it is read
        .set    IIR_THR_EMPTY,  0x02            #     THR takes bytes; gone when IIR has been read

        .set    SERIAL_VECTOR,  PIC_VECTOR + IRQ_SERIAL

        .set    FIFO_SIZE,      16
        .set    RING_MASK,      63              # rings of 64 bytes; positions count on, and are masked when used

        .code64
        .globl  _start
_start:
        set_gate idt, SERIAL_VECTOR, serial
        lidt    idt_pointer                     # IDTR = where the gate is
        pic_init ~(1 << IRQ_SERIAL) & 0xff, PIC_MASK_ALL
        mov     $SERIAL_FCR, %dx
        mov     $FCR_ENABLE | FCR_CLEAR | FCR_TRIGGER_8, %al
        out     %al, (%dx)                      # FCR: FIFOs on
        mov     $SERIAL_MCR, %dx
        mov     $MCR_DTR_RTS | MCR_OUT2, %al
        out     %al, (%dx)                      # MCR: the interrupt may reach the PIC
        call    write_ier                       # IER: call when something comes
        sti

        mov     $'>', %al
        call    put
        mov     $' ', %al
        call    put
next:
        call    get
        cmp     $'\r', %al                      # the Enter key of a terminal
        jne     1f
        mov     $'\n', %al
1:      cmp     $'a', %al
        jb      2f
        cmp     $'z', %al
        ja      2f
        sub     $'a' - 'A', %al
2:      call    put
        cmp     $'\n', %al
        jne     next

drain:
        cli
        mov     sent, %ecx
        cmp     %ecx, to_send
        je      drained
        sti
        hlt                                     # the handler has bytes left to send
        jmp     drain
drained:
        hlt                                     # done: RFLAGS.IF = 0

/* get: wait for a received byte and return it in AL. Changes RCX and DX. */
get:
        cli                                     # no interrupt between looking and sleeping
        mov     taken, %ecx
        cmp     %ecx, received
        jne     1f
        sti                                     # takes effect after the next instruction ...
        hlt                                     # ... so that the CPU sleeps before the handler can have run
        jmp     get
1:      and     $RING_MASK, %ecx
        mov     receive_ring(%rcx), %al
        incl    taken
        testb   $IER_RECEIVED, ier
        jnz     2f
        orb     $IER_RECEIVED, ier
        call    write_ier                       # IER: there is room again
2:      sti
        ret

/* put: hand the byte in AL to the handler for sending; wait while the ring is full. Changes RCX and DX. */
put:
        cli
        mov     to_send, %ecx
        sub     sent, %ecx                      # bytes in the ring
        cmp     $RING_MASK, %ecx
        jbe     1f
        sti
        hlt
        jmp     put
1:      mov     to_send, %ecx
        and     $RING_MASK, %ecx
        mov     %al, send_ring(%rcx)
        incl    to_send
        orb     $IER_THR_EMPTY, ier
        call    write_ier                       # IER: if THR is empty, this alone calls the handler
        sti
        ret

/* write_ier: tell the UART what to call for. Changes DX. */
write_ier:
        push    %rax
        mov     $SERIAL_IER, %dx
        mov     ier, %al
        out     %al, (%dx)                      # IER
        pop     %rax
        ret

/* IRQ 4: do what IIR says until it says "none". Only then is the line low, and the next call an edge for the PIC. */
serial:
        push    %rax
        push    %rcx
        push    %rdx
another:
        mov     $SERIAL_IIR, %dx
        in      (%dx), %al                      # IIR: why?
        and     $IIR_WHICH, %al
        cmp     $IIR_RECEIVED, %al
        je      receive
        cmp     $IIR_TIMEOUT, %al
        je      receive
        cmp     $IIR_THR_EMPTY, %al
        je      send
        cmp     $IIR_NONE, %al
        je      finished
        mov     $SERIAL_LSR, %dx
        cmp     $IIR_LINE, %al
        je      1f
        mov     $SERIAL_MSR, %dx
1:      in      (%dx), %al                      # LSR or MSR: not enabled, but reading it would take it away
        jmp     another
finished:
        pic_eoi
        pop     %rdx
        pop     %rcx
        pop     %rax
        iretq

receive:
        mov     received, %ecx
        sub     taken, %ecx                     # bytes in the ring
        cmp     $RING_MASK, %ecx
        ja      no_room
        mov     $SERIAL_LSR, %dx
        in      (%dx), %al                      # LSR: is there (another) byte?
        test    $LSR_DR, %al
        jz      another
        mov     $SERIAL_RBR, %dx
        in      (%dx), %al                      # RBR: take it
        mov     received, %ecx
        and     $RING_MASK, %ecx
        mov     %al, receive_ring(%rcx)
        incl    received
        jmp     receive
no_room:
        andb    $~IER_RECEIVED & 0xff, ier
        call    write_ier                       # IER: what comes now may wait in the FIFO, until get has made room
        jmp     another

send:
        mov     $SERIAL_THR, %dx
        push    %rbx
        mov     $FIFO_SIZE, %ebx                # that many fit: THR empty means that the whole FIFO is
1:      mov     sent, %ecx
        cmp     %ecx, to_send
        je      nothing_to_send
        and     $RING_MASK, %ecx
        mov     send_ring(%rcx), %al
        out     %al, (%dx)                      # THR: send it
        incl    sent
        dec     %ebx
        jnz     1b
        pop     %rbx
        jmp     another
nothing_to_send:
        pop     %rbx
        andb    $~IER_THR_EMPTY & 0xff, ier
        call    write_ier                       # IER: no more calls because THR is empty
        jmp     another

idt_pointer:
        .word   16 * 48 - 1                     # limit: 48 gates, exceptions and the PICs' interrupts
        .quad   idt                             # base

ier:
        .byte   IER_RECEIVED                    # what IER is to hold

        .bss
        .balign 16
idt:
        .skip   16 * 48                         # a gate of zeros is not present
receive_ring:
        .skip   RING_MASK + 1
send_ring:
        .skip   RING_MASK + 1
received:
        .skip   4                               # bytes put into receive_ring, by the handler ...
taken:
        .skip   4                               # ... and taken out, by get
to_send:
        .skip   4                               # bytes put into send_ring, by put ...
sent:
        .skip   4                               # ... and taken out, by the handler
