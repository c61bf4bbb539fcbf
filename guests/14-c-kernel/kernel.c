/*
 * 14-c-kernel, kernel.c: a kernel in C without a library under it.
 *
 * Freestanding: the compiler brings types and nothing else, so even printing has to be written. Only general registers
 * are used (-mgeneral-regs-only): a kernel that touches SSE has to save it for everybody, and some hosts' KVM does not
 * emulate SSE in ring 0. There is no red zone (-mno-red-zone), for an exception would overwrite it.
 */

#include <stdint.h>

/* The serial port: a 16550A UART at the ports of COM1. */
enum {
	SERIAL_THR = 0x3f8, /* write: the next byte to send */
	SERIAL_LSR = 0x3fd, /* Line Status Register */
	LSR_THRE = 0x20,    /* THR takes a byte */
};

/* Write a byte to an I/O port. */
static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

/* Read a byte from an I/O port. */
static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void put_char(char c)
{
	while (!(inb(SERIAL_LSR) & LSR_THRE))
		; /* the UART is still busy with the byte before */
	outb(SERIAL_THR, (uint8_t)c);
}

static void put_string(const char *string)
{
	while (*string)
		put_char(*string++);
}

static void put_decimal(uint64_t value)
{
	char digits[21]; /* 2^64 has 20 digits */
	char *first = &digits[20];

	*first = '\0';
	do {
		*--first = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	put_string(first);
}

/* The sieve lives in .bss: the image holds no byte of it, and the loader provides the zeros. */
enum { LIMIT = 50 };
static uint8_t composite[LIMIT];

/* Print the primes below LIMIT and return how many there are. */
static uint8_t print_primes(void)
{
	uint8_t count = 0;

	for (unsigned int n = 2; n < LIMIT; n++) {
		if (composite[n])
			continue;
		put_char(' ');
		put_decimal(n);
		count++;
		for (unsigned int multiple = 2 * n; multiple < LIMIT; multiple += n)
			composite[multiple] = 1;
	}
	return count;
}

/* Called by start.S; the low byte of the result goes to the debug-exit port. */
uint8_t kernel_main(void)
{
	put_string("Hello from C\nprimes below ");
	put_decimal(LIMIT);
	put_char(':');
	uint8_t count = print_primes();
	put_char('\n');
	return count;
}
