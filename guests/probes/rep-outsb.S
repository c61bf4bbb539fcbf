/*
 * mode: real
 * ring: 0
 * proves: REP OUTSB and REP INSB run to their end: counter, pointers and the bytes read are right
 */
        .code16
        .globl  _start
_start:
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     $0x80, %dx                      # the POST port: writes are harmless
        mov     $bytes, %si
        mov     $5, %cx
        rep outsb
        cmp     $bytes + 5, %si
        jne     1f
        mov     $0xe9, %dx                      # the debug console reads as 0xe9
        mov     $bytes, %di
        mov     $5, %cx
        rep insb
        test    %cx, %cx
        jnz     1f
        cmpb    $0xe9, bytes + 4
        jne     1f
        cmpb    $0x11, bytes + 5                # not one byte too many
        jne     1f
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
1:      hlt
bytes:
        .byte   1, 2, 3, 4, 5, 0x11
