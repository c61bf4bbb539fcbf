/*
 * 07-paging32: switch on 32-bit paging, and see one byte of memory at two addresses.
 *
 * Mode:        32-bit protected mode without paging, set up by the host; the guest switches paging on
 * Loaded at:   0x100000
 * At entry:    EIP = 0x100000, ESP = 0x7c00, flat segments of 4 GiB
 * Expected:    a line printed before and one after CR0.PG is set, the second read through a 4 KiB page at 0x80000000;
 *              KVM_EXIT_HLT. When the two addresses disagree, the debug-exit port gets 1.
 *              Some hosts' KVM cannot do 32-bit paging (`pykvm doctor --probe` tells): there the CPU shuts down at the
 *              first instruction after the switch.
 */

        .include "ports.inc"
        .include "print.inc"

        .set    CR0_PG, 0x80000000              # Paging
        .set    CR4_PSE, 0x10                   # Page Size Extensions: PS in a directory entry is obeyed
        .set    PRESENT, 0x01                   # bits of an entry, in the directory and in the table alike
        .set    WRITABLE, 0x02
        .set    PS, 0x80                        # Page Size: this directory entry maps 4 MiB itself
        .set    WINDOW, 0x80000000              # where the page shows up a second time

        .code32
        .globl  _start
_start:
        mov     $paging_off, %esi
        call    print_string

/*
 * A linear address is cut in three:    31    22 21    12 11     0
 *                                      directory  table   offset
 *
 *      directory[0]    4 MiB page at 0         this code goes on running where it is
 *      directory[512]  -> table                0x80000000 >> 22 = 512
 *      table[0]        4 KiB page: `page`
 */
        movl    $PRESENT | WRITABLE | PS, directory
        movl    $table + (PRESENT | WRITABLE), directory + 4 * (WINDOW >> 22)
        movl    $page + (PRESENT | WRITABLE), table

        mov     %cr4, %eax
        or      $CR4_PSE, %eax
        mov     %eax, %cr4                      # 4 MiB pages allowed
        mov     $directory, %eax
        mov     %eax, %cr3                      # where the walk of every address starts
        mov     %cr0, %eax
        or      $CR0_PG, %eax
        mov     %eax, %cr0                      # paging is on: the next fetch already goes through directory[0]

        movb    $'P', WINDOW                    # write through the window (the page has a lower-case p there) ...
        cmpb    $'P', page                      # ... and read at the page's own address
        jne     differs
        mov     $WINDOW, %esi
        call    print_string
        hlt                                     # done
differs:
        mov     $1, %al
        out     %al, $DEBUG_EXIT                # end the run with status 3

        define_print_string print_string

paging_off:
        .asciz  "paging off: an address is an address\n"

        .balign 4096                            # tables and pages start at multiples of 4 KiB
directory:
        .fill   1024, 4, 0
table:
        .fill   1024, 4, 0
page:
        .asciz  "paging on: read at 0x80000000, stored elsewhere\n"
