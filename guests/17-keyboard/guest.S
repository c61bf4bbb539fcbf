/*
 * 17-keyboard: keys by interrupt: scan codes from the i8042, made into characters, until Enter.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT; the PICs and the
 *              i8042 as firmware leaves them
 * Expected:    the keys' characters come out of the serial port after "keys: "; Enter ends the run by the debug-exit
 *              port with the number of characters, n, so that the status is (n << 1) | 1
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "idt64.inc"
        .include "pic.inc"

        .set    KBD_DATA,       0x60            # the keyboard's bytes; after a command, its parameter
        .set    KBD_STATUS,     0x64            # read
        .set    KBD_COMMAND,    0x64            # write

        .set    STATUS_INPUT_FULL, 0x02         # the controller has not taken the last byte written yet

        .set    COMMAND_WRITE_CONFIG, 0x60      # the next byte written to KBD_DATA is the configuration:
        .set    CONFIG_IRQ1,    0x01            #     raise IRQ 1 when a byte waits
        .set    CONFIG_SYSTEM,  0x04            #     "the self-test went well"
        .set    CONFIG_TRANSLATE, 0x40          #     from scan code set 2, the keyboard's, to set 1, the PC's

        .set    KEYBOARD_VECTOR, PIC_VECTOR + IRQ_KEYBOARD
        .set    RELEASED,       0x80            # this bit of a scan code: the key was let go

        .code64
        .globl  _start
_start:
        set_gate idt, KEYBOARD_VECTOR, keyboard
        lidt    idt_pointer                     # IDTR = where the gate is
        mov     $prompt, %esi
        call    print_string
        mov     $CONFIG_SYSTEM | CONFIG_TRANSLATE, %al
        call    configure                       # no interrupts for now: IRQ 1 is low ...
        pic_init ~(1 << IRQ_KEYBOARD) & 0xff, PIC_MASK_ALL
        mov     $CONFIG_IRQ1 | CONFIG_SYSTEM | CONFIG_TRANSLATE, %al
        call    configure                       # ... and goes high here if a byte waits already: the PIC wants an edge
        sti
sleep:
        hlt                                     # all the rest is up to the handler
        jmp     sleep

/* configure: give the i8042 the configuration in AL. */
configure:
        push    %rax
        mov     $COMMAND_WRITE_CONFIG, %al
        call    wait_for_controller
        out     %al, $KBD_COMMAND               # what comes next is the configuration
        pop     %rax
        call    wait_for_controller
        out     %al, $KBD_DATA
        ret

/* wait_for_controller: wait until the i8042 takes another byte. */
wait_for_controller:
        push    %rax
1:      in      $KBD_STATUS, %al                # has it taken the last one?
        test    $STATUS_INPUT_FULL, %al
        jnz     1b
        pop     %rax
        ret

/* IRQ 1: a byte from the keyboard. */
keyboard:
        push    %rax
        push    %rsi
        xor     %eax, %eax
        in      $KBD_DATA, %al                  # take it, and let the next one come
        test    $RELEASED, %al
        jnz     1f                              # a key was let go
        cmp     $LAST_CODE, %al
        ja      1f                              # a key that has no character
        mov     characters(%rax), %al
        test    %al, %al
        jz      1f                              # the same
        mov     %al, character
        mov     $character, %esi
        call    print_string
        cmpb    $'\n', character
        je      enter
        incb    count
1:      pic_eoi                                 # without it the PIC would send no other
        pop     %rsi
        pop     %rax
        iretq
enter:
        mov     count, %al
        out     %al, $DEBUG_EXIT                # end the run; its status tells the count

        define_print_string print_string

prompt:
        .asciz  "keys: "

/* What the keys mean, by scan code of set 1, on a US keyboard without Shift: 16 a line. A zero is no character. */
characters:
        .ascii  "\0\0331234567890-=\b\t"        # 0x00: -, Esc, 1 to 0, -, =, Backspace, Tab
        .ascii  "qwertyuiop[]\n\0as"            # 0x10: the upper row of letters, Enter, Ctrl, A, S
        .ascii  "dfghjkl;'`\0\\zxcv"            # 0x20: the middle row, left Shift, the lower row
        .ascii  "bnm,./\0*\0 "                  # 0x30: right Shift, keypad *, Alt, Space
        .set    LAST_CODE, . - characters - 1

character:
        .asciz  " "                             # the last one, as a string
count:
        .byte   0                               # of characters

idt_pointer:
        .word   16 * 48 - 1                     # limit: 48 gates, exceptions and the PICs' interrupts
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 48                         # a gate of zeros is not present
