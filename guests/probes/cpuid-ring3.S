/*
 * mode: long
 * ring: 0
 * proves: CPUID in ring 3 says the same as in ring 0 (leaf 0: vendor; leaf 1 EAX: family and model)
 */
        .include "layout.inc"
        .include "idt64.inc"
        .include "ring3.inc"

        .code64
        .globl  _start
_start:
        xor     %eax, %eax
        cpuid
        mov     %ebx, %r8d
        mov     %ecx, %r9d
        mov     %edx, %r10d
        mov     $1, %eax
        cpuid
        mov     %eax, %r12d
        enter_ring3 user, done
user:
        xor     %eax, %eax
        cpuid
        xor     %ebx, %r8d
        xor     %ecx, %r9d
        xor     %edx, %r10d
        mov     $1, %eax
        cpuid
        xor     %eax, %r12d
        or      %r12d, %r8d
        or      %r9d, %r8d
        or      %r10d, %r8d
        ud2                                     # back to ring 0
done:
        test    %r8d, %r8d                      # every difference left a bit here
        jnz     1f
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
1:      hlt

        end_of_probe
