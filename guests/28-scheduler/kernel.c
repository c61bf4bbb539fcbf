/*
 * 28-scheduler, kernel.c: three tasks that never give up the CPU, and a timer that takes it from them.
 *
 * A round-robin scheduler: at each tick the task that runs is put aside, and the next one goes on where it was put
 * aside itself. The tasks wait for each other in loops; without the timer the first wait would last for ever.
 */

#include <stdint.h>

/* Ports: the serial port, the two 8259A interrupt controllers, the 8254 timer. */
enum {
	SERIAL_THR = 0x3f8, /* write: the next byte to send */
	SERIAL_LSR = 0x3fd, /* Line Status Register */
	LSR_THRE = 0x20,    /* THR takes a byte */

	PIC1_COMMAND = 0x20,
	PIC1_DATA = 0x21,
	PIC2_COMMAND = 0xa0,
	PIC2_DATA = 0xa1,
	ICW1_INIT_ICW4 = 0x11, /* the initialization sequence begins; ICW4 is part of it */
	ICW4_8086 = 0x01,      /* interrupts of an x86 */
	OCW2_EOI = 0x20,       /* end of interrupt */
	ONLY_IRQ0 = 0xfe,      /* masks: a set bit keeps an interrupt away */
	NO_IRQ = 0xff,

	PIT_CHANNEL0 = 0x40,
	PIT_CONTROL = 0x43,
	PIT_RATE = 0x34,     /* channel 0, low byte then high byte, mode 2 */
	PIT_RELOAD = 11932,  /* 1193182 Hz / 11932: 100 ticks a second */
	TIMER_VECTOR = 0x20, /* IRQ 0 */
};

/* What the host has put into the GDT, and what a task starts with. */
enum { KERNEL_CODE = 0x08, KERNEL_DATA = 0x10, RFLAGS_IF = 1 << 9, RFLAGS_ALWAYS_SET = 1 << 1 };

enum { TASKS = 3, STACK_SIZE = 4096, ROUNDS = 6 };

/* A gate of the IDT: the handler's address in three pieces. */
struct gate {
	uint16_t offset_low;
	uint16_t selector;
	uint8_t ist;
	uint8_t type; /* present, DPL 0, interrupt gate: RFLAGS.IF is cleared on the way in */
	uint16_t offset_middle;
	uint32_t offset_high;
	uint32_t reserved;
} __attribute__((packed));

struct idt_pointer {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

/* A task that does not run, as it lies on its stack: timer_interrupt pushed the first part, the CPU the second. */
struct saved_state {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
	uint64_t rip, cs, rflags, rsp, ss;
};

struct task {
	struct saved_state *saved; /* while it does not run */
	char letter;
	unsigned int pace;   /* prints in every pace-th round */
	unsigned int slices; /* how often the scheduler has chosen it */
	uint8_t stack[STACK_SIZE] __attribute__((aligned(16)));
};

static struct gate idt[TIMER_VECTOR + 1];
static struct task tasks[TASKS] = {
	{ .letter = 'A', .pace = 1 },
	{ .letter = 'B', .pace = 2 },
	{ .letter = 'C', .pace = 3 },
};
static unsigned int current;       /* the task that runs */
static volatile unsigned int turn; /* the task that may print: volatile, for other tasks change it */

void timer_interrupt(void); /* start.S */

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void put_char(char c)
{
	while (!(inb(SERIAL_LSR) & LSR_THRE))
		;
	outb(SERIAL_THR, (uint8_t)c);
}

static void put_string(const char *string)
{
	while (*string)
		put_char(*string++);
}

/* ---- the tasks ---- */

/* Wait for the task's turn, print its letter if it is the round for it, and pass the turn on. */
static void take_turn(const struct task *self, unsigned int me, unsigned int round)
{
	while (turn != me)
		; /* only the timer gets us out of here */
	if (round % self->pace == 0)
		put_char(self->letter);
	if (me == TASKS - 1)
		put_char(round == ROUNDS ? '\n' : ' ');
	turn = (me + 1) % TASKS;
}

/* Say whether the scheduler was fair, and stop for good: nothing gets through RFLAGS.IF = 0. */
static void finish(void)
{
	unsigned int most = 0, least = ~0u;

	__asm__ volatile("cli");
	for (unsigned int n = 0; n < TASKS; n++) {
		most = tasks[n].slices > most ? tasks[n].slices : most;
		least = tasks[n].slices < least ? tasks[n].slices : least;
	}
	put_string(most - least <= 1 ? "fair: no task had two slices more than another\n" : "unfair\n");
	for (;;)
		__asm__ volatile("hlt");
}

/* What each task runs. It never asks for another task to run, not even at its end. */
static void run_task(const struct task *self)
{
	unsigned int me = (unsigned int)(self - tasks);

	for (unsigned int round = 1; round <= ROUNDS; round++)
		take_turn(self, me, round);
	if (me == TASKS - 1)
		finish();
	for (;;)
		;
}

/* ---- the scheduler ---- */

/* Called by timer_interrupt with the task that was running; return the one to go on with. Interrupts are off. */
struct saved_state *schedule(struct saved_state *interrupted)
{
	outb(PIC1_COMMAND, OCW2_EOI);
	tasks[current].saved = interrupted;
	current = (current + 1) % TASKS;
	tasks[current].slices++;
	return tasks[current].saved;
}

/* Lay out a task's stack as if the timer had interrupted it just before the first instruction of run_task(). */
static void create_task(struct task *task)
{
	uint64_t top = (uint64_t)(task->stack + STACK_SIZE);

	task->saved = (struct saved_state *)top - 1;
	task->saved->rip = (uint64_t)run_task;
	task->saved->rdi = (uint64_t)task; /* its argument */
	task->saved->cs = KERNEL_CODE;
	task->saved->rflags = RFLAGS_ALWAYS_SET | RFLAGS_IF;
	task->saved->rsp = top - 8; /* the ABI: as after a call, 8 below a multiple of 16 */
	task->saved->ss = KERNEL_DATA;
}

/* ---- interrupts and time ---- */

static void init_idt(void)
{
	uint64_t handler = (uint64_t)timer_interrupt;
	struct idt_pointer pointer = { sizeof(idt) - 1, (uint64_t)idt };

	idt[TIMER_VECTOR] = (struct gate){
		.offset_low = (uint16_t)handler,
		.selector = KERNEL_CODE,
		.type = 0x8e,
		.offset_middle = (uint16_t)(handler >> 16),
		.offset_high = (uint32_t)(handler >> 32),
	};
	__asm__ volatile("lidt %0" : : "m"(pointer));
}

static void init_pics(void)
{
	outb(PIC1_COMMAND, ICW1_INIT_ICW4);
	outb(PIC2_COMMAND, ICW1_INIT_ICW4);
	outb(PIC1_DATA, TIMER_VECTOR); /* ICW2: IRQ 0 to 7 */
	outb(PIC2_DATA, TIMER_VECTOR + 8);
	outb(PIC1_DATA, 1 << 2); /* ICW3: the slave is at input 2 ... */
	outb(PIC2_DATA, 2);      /* ... and knows it */
	outb(PIC1_DATA, ICW4_8086);
	outb(PIC2_DATA, ICW4_8086);
	outb(PIC1_DATA, ONLY_IRQ0);
	outb(PIC2_DATA, NO_IRQ);
}

static void init_timer(void)
{
	outb(PIT_CONTROL, PIT_RATE);
	outb(PIT_CHANNEL0, PIT_RELOAD & 0xff);
	outb(PIT_CHANNEL0, PIT_RELOAD >> 8);
}

/* Called by start.S with interrupts off; return the task to begin with. */
struct saved_state *kernel_main(void)
{
	put_string("three tasks, and none of them ever gives up the CPU\n");
	init_idt();
	init_pics();
	init_timer();
	for (unsigned int n = 0; n < TASKS; n++)
		create_task(&tasks[n]);
	tasks[0].slices = 1;
	return tasks[0].saved;
}
