/*
 * mode: protected
 * ring: 0
 * proves: 32-bit paging works when the guest sets CR0.PG itself (one 4 MiB page)
 */
        .code32
        .globl  _start
_start:
        movl    $0x83, directory                # 4 MiB at 0: present, writable, page size
        mov     $0x10, %eax
        mov     %eax, %cr4                      # CR4.PSE
        mov     $directory, %eax
        mov     %eax, %cr3
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0                      # CR0.PG
        mov     $0x2a, %al                      # fetched through the page table
        out     %al, $0xf4                      # success
        hlt

        .bss
        .balign 4096
directory:
        .skip   4096
