/*
 * mode: long
 * ring: 0
 * proves: a page fault in ring 0 reaches the guest's IDT, with its address in CR2 and its error code
 */
        .include "layout.inc"
        .include "idt64.inc"

        .set    UNMAPPED, 0x8000000000          # 512 GiB: PML4[1] is empty

        .code64
        .globl  _start
_start:
        set_gate idt, 14, page_fault
        lidt    idt_pointer
        movabs  $UNMAPPED, %rbx
        movb    $1, (%rbx)                      # #PF
        hlt
page_fault:
        cmpl    $2, (%rsp)                      # error code: a write, not present, ring 0
        jne     1f
        mov     %cr2, %rax
        cmp     %rbx, %rax
        jne     1f
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
1:      hlt
idt_pointer:
        .word   16 * 32 - 1
        .quad   idt

        .bss
        .balign 16
idt:    .skip   16 * 32
