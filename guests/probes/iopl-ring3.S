/*
 * mode: long
 * ring: 0
 * proves: OUT in ring 3 works when RFLAGS.IOPL is 3
 */
        .include "layout.inc"
        .include "idt64.inc"
        .include "ring3.inc"

        .code64
        .globl  _start
_start:
        enter_ring3 first, second               # only to open the pages and to load the IDT
first:
        ud2
second:
        set_gate idt, 6, failed
        pushq   $USER_DATA                      # SS
        pushq   $user_stack_top                 # RSP
        pushq   $0x3002                         # RFLAGS: IOPL 3
        pushq   $USER_CODE64                    # CS
        pushq   $user                           # RIP
        iretq
user:
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
        ud2
failed:
        hlt

        end_of_probe
