/*
 * A Multiboot kernel that says on COM1 what it was given: "module SIZE SHA256" for each module, then "netboot ends",
 * and powers off through the ACPI PM block. It is what a boot loader under test is to load, and the loaded file's judge.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

__asm__(".section .multiboot, \"a\"\n"
	".balign 4\n .long 0x1badb002, 3, -(0x1badb002 + 3)\n"	/* page-aligned modules, memory information */
	".text\n.globl _start\n"
	"_start: mov $stack + 16384, %esp\n push %ebx\n push %eax\n call kernel\n");
u8 stack[16384] __attribute__((aligned(16)));

struct module { u32 start, end, string, reserved; };
struct information { u32 flags, lower, upper, device, command_line, nr_modules; struct module *modules; };

static void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" :: "a"(value), "Nd"(port)); }
static void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" :: "a"(value), "Nd"(port)); }
static u8 in8(u16 port) { u8 value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }

static void put(const char *text)
{
	for (; *text; text++) {
		while (!(in8(0x3fd) & 0x20))
			;
		out8(0x3f8, *text);
	}
}

static void put_hex(u32 value, int digits)
{
	char text[2] = { 0, 0 };
	while (digits--) {
		text[0] = "0123456789abcdef"[value >> 4 * digits & 15];
		put(text);
	}
}

static void put_decimal(u32 value)
{
	char text[12], *at = text + 11;
	*at = 0;
	do
		*--at = '0' + value % 10;
	while (value /= 10);
	put(at);
}

/* SHA-256 (FIPS 180-4). The constants are computed: the first 32 bits of the fractions of the roots of primes. */
static u32 k[64], state[8];

static void multiply(u32 *product, const u32 *a, int limbs, const u32 *b)
{
	/* `limbs` limbs of a by two of b, least significant first. */
	for (int i = 0; i < limbs + 2; i++)
		product[i] = 0;
	for (int i = 0; i < limbs; i++) {
		unsigned long long carry = 0;
		for (int j = 0; j < 2; j++) {
			carry += (unsigned long long)a[i] * b[j] + product[i + j];
			product[i + j] = carry;
			carry >>= 32;
		}
		product[i + 2] = carry;
	}
}

static u32 fraction_of_root(u32 prime, int degree)
{
	/* The largest r of 32 fraction bits whose power is below the prime, bit by bit, exactly. */
	u32 r[2] = { 0, 0 }, square[4], cube[6], *power = degree == 2 ? square : cube;
	for (int bit = 36; bit >= 0; bit--) {
		u32 mask = 1u << bit % 32;
		r[bit / 32] |= mask;
		multiply(square, r, 2, r);
		multiply(cube, square, 4, r);
		/* The power has 32 fraction bits for each degree: its integer is in the limb behind those. */
		if (power[degree] >= prime || (degree == 2 ? square[3] : cube[4] | cube[5]))
			r[bit / 32] &= ~mask;
	}
	return r[0];
}

static void sha256_constants(void)
{
	int found = 0;
	for (u32 n = 2; found < 64; n++) {
		u32 d = 2;
		while (d * d <= n && n % d)
			d++;
		if (d * d <= n)
			continue;
		k[found] = fraction_of_root(n, 3);
		if (found < 8)
			state[found] = fraction_of_root(n, 2);
		found++;
	}
}

static u32 turn(u32 x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(const u8 *p)
{
	u32 w[64], s[8];
	for (int i = 0; i < 64; i++)
		w[i] = i < 16 ? (u32)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3]
			: w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7]
			  + (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
	for (int i = 0; i < 8; i++)
		s[i] = state[i];
	for (int i = 0; i < 64; i++) {
		u32 one = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
		u32 two = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
		for (int j = 7; j; j--)
			s[j] = s[j - 1];
		s[4] += one;
		s[0] = one + two;
	}
	for (int i = 0; i < 8; i++)
		state[i] += s[i];
}

static void put_sha256(const u8 *data, u32 size)
{
	u8 last[128];
	u32 at, rest = size % 64, padded = rest < 56 ? 64 : 128;
	sha256_constants();
	for (at = 0; at + 64 <= size; at += 64)
		sha256_block(data + at);
	for (u32 i = 0; i < padded; i++)
		last[i] = i < rest ? data[at + i] : i == rest ? 0x80 : 0;
	for (int i = 0; i < 4; i++)
		last[padded - 1 - i] = size << 3 >> 8 * i;
	last[padded - 5] = size >> 29;
	for (u32 i = 0; i < padded; i += 64)
		sha256_block(last + i);
	for (int i = 0; i < 8; i++)
		put_hex(state[i], 8);
}

void kernel(u32 magic, const struct information *given)
{
	put("\r\nnetboot begins\r\n");
	if (magic == 0x2badb002 && given->flags & 8)
		for (u32 i = 0; i < given->nr_modules; i++) {
			const struct module *m = &given->modules[i];
			put("module ");
			put_decimal(m->end - m->start);
			put(" ");
			put_sha256((const u8 *)m->start, m->end - m->start);
			put("\r\n");
		}
	put("netboot ends\r\n");
	out16(0xb004, 0x2000);
	for (;;)
		__asm__ volatile("cli; hlt");
}
