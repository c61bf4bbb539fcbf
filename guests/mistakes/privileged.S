/*
 * privileged: ring 3 uses an instruction that is for ring 0.
 *
 * Mode:        64-bit long mode, ring 3, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Options:     --ring 3
 * Mistake:     HLT is for ring 0, however harmless it looks.
 * Expected:    #GP, no gate; so #DF, no gate; shutdown
 */

        .code64
        .globl  _start
_start:
        hlt                                     # #GP: ring 3 may not stop the CPU
