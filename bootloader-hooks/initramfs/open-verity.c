/* Opens a dm-verity device from the initramfs: what is read through it has the root hash that was given, or the kernel panics.
 *
 *   open-verity [-n] DEVICE NAME ROOT      ROOT: root hash, 64 hexadecimal digits; NAME: of the new device, /dev/mapper/NAME
 *
 * DEVICE holds a squashfs, erofs or ext4 and, from the next multiple of 4096 bytes on, a verity superblock (version 1, sha256)
 * and its hash tree, as `veritysetup format --hash-offset=` leaves them. The new device is read-only, made with
 * panic_on_corruption; the path of its node is printed. -n: only print the device-mapper table. The kernel needs dm-mod and
 * dm-verity. The superblock is not signed; whatever stands in it, no block is read that does not lead to the root hash.
 *
 * Exit: 0 open, 1 not, with one line why, 2 usage.
 * Build: cc -static -Os -s -o open-verity open-verity.c
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <unistd.h>

enum { BLOCK = 4096, HEAD = 4096, SUPERBLOCK = 512, MAX_SALT = 256, HASH = 32, MAX_NAME = 64, MISC_MAJOR = 10, CONTROL_MINOR = 236 };

static const char CONTROL[] = "/dev/mapper/control";

/* What is told of the file system and of its tree. offset: of the superblock, bytes; salt: hexadecimal, "-" for none. */
struct tree {
	uint64_t offset, data_blocks;
	uint32_t data_block, hash_block;
	char salt[2 * MAX_SALT + 1];
};

static int say(const char *device, const char *what)
{
	dprintf(2, "open-verity: %s: %s\n", device, what);
	return 1;
}

static int fail(const char *device, const char *what)
{
	dprintf(2, "open-verity: %s: %s: %s\n", device, what, strerror(errno));
	return 1;
}

static uint16_t u16(const unsigned char *at)
{
	uint16_t value;

	memcpy(&value, at, sizeof(value));
	return le16toh(value);
}

static uint32_t u32(const unsigned char *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return le32toh(value);
}

static uint64_t u64(const unsigned char *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return le64toh(value);
}

/* Bytes that the file system takes, by its own superblock; 0: it is none of the three. */
static uint64_t fs_bytes(const unsigned char *head)
{
	const unsigned char *second = head + 1024;

	if (memcmp(head, "hsqs", 4) == 0)
		return u64(head + 40);
	if (u32(second) == 0xe0f5e1e2 && second[12] < 32)
		return (uint64_t)u32(second + 36) << second[12];
	if (u16(second + 56) == 0xef53 && u32(second + 24) <= 6) {
		uint64_t blocks = u32(second + 4);

		if (u32(second + 96) & 0x80) /* 64bit */
			blocks |= (uint64_t)u32(second + 336) << 32;
		return blocks << (10 + u32(second + 24));
	}
	return 0;
}

static int power_of_two(uint32_t value)
{
	return value >= 512 && value <= BLOCK && (value & (value - 1)) == 0;
}

static int read_tree(int fd, const char *device, struct tree *tree)
{
	unsigned char head[HEAD], block[SUPERBLOCK];
	uint64_t bytes;
	unsigned int salt;

	if (pread(fd, head, sizeof(head), 0) != sizeof(head))
		return say(device, "cannot be read");
	bytes = fs_bytes(head);
	if (bytes == 0 || bytes > UINT64_MAX / 4)
		return say(device, "no squashfs, erofs or ext4 on it");
	tree->offset = (bytes + BLOCK - 1) / BLOCK * BLOCK;
	if (pread(fd, block, sizeof(block), (off_t)tree->offset) != sizeof(block) || memcmp(block, "verity\0\0", 8) != 0)
		return say(device, "no verity superblock behind the file system");
	if (u32(block + 8) != 1 || u32(block + 12) != 1 || strncmp((const char *)block + 32, "sha256", 32) != 0)
		return say(device, "not a verity superblock of version 1 with sha256");
	tree->data_block = u32(block + 64);
	tree->hash_block = u32(block + 68);
	tree->data_blocks = u64(block + 72);
	salt = u16(block + 80);
	if (!power_of_two(tree->data_block) || !power_of_two(tree->hash_block) || salt > MAX_SALT)
		return say(device, "the verity superblock is damaged");
	if (tree->data_blocks == 0 || tree->data_blocks > tree->offset / tree->data_block)
		return say(device, "the verity superblock is of another file system");
	strcpy(tree->salt, "-");
	for (unsigned int i = 0; i < salt; i++)
		sprintf(tree->salt + 2 * i, "%02x", block[88 + i]);
	return 0;
}

/* The node is devtmpfs' business; a /dev without it gets one. */
static int open_control(void)
{
	int fd = open(CONTROL, O_RDWR | O_CLOEXEC);

	if (fd < 0 && errno == ENOENT) {
		mkdir("/dev/mapper", 0755);
		mknod(CONTROL, S_IFCHR | 0600, makedev(MISC_MAJOR, CONTROL_MINOR));
		fd = open(CONTROL, O_RDWR | O_CLOEXEC);
	}
	return fd;
}

static int command(int fd, unsigned long request, struct dm_ioctl *io, size_t size, const char *name, uint32_t flags, uint32_t targets)
{
	memset(io, 0, sizeof(*io));
	io->version[0] = DM_VERSION_MAJOR;
	io->data_size = (uint32_t)size;
	io->data_start = sizeof(*io);
	io->flags = flags;
	io->target_count = targets;
	strcpy(io->name, name);
	return ioctl(fd, request, io);
}

static int make_device(const char *device, const char *name, const struct tree *tree, const char *table)
{
	struct {
		struct dm_ioctl io;
		struct dm_target_spec spec;
		char table[2048];
	} all = { 0 };
	char node[128];
	int fd = open_control();

	if (fd < 0)
		return fail(device, "no device mapper (module dm-mod)");
	if (command(fd, DM_DEV_CREATE, &all.io, sizeof(all), name, 0, 0) < 0)
		return fail(device, "the device mapper makes no new device");
	all.spec.length = tree->data_blocks * (tree->data_block / 512);
	strcpy(all.spec.target_type, "verity");
	strcpy(all.table, table);
	all.spec.next = sizeof(all.spec) + (uint32_t)((strlen(table) + 8) / 8 * 8);
	if (command(fd, DM_TABLE_LOAD, &all.io, sizeof(all), name, DM_READONLY_FLAG, 1) < 0 ||
	    command(fd, DM_DEV_SUSPEND, &all.io, sizeof(all), name, 0, 0) < 0) {
		int error = errno;

		command(fd, DM_DEV_REMOVE, &all.io, sizeof(all), name, 0, 0);
		errno = error;
		return fail(device, "the kernel refuses the verity table (module dm-verity, sha256)");
	}
	snprintf(node, sizeof(node), "/dev/mapper/%s", name);
	unlink(node);
	if (mknod(node, S_IFBLK | 0600, (dev_t)makedev(major(all.io.dev), minor(all.io.dev))) < 0)
		return fail(node, "cannot be made");
	printf("%s\n", node);
	return 0;
}

int main(int argc, char **argv)
{
	int only_print = argc == 5 && strcmp(argv[1], "-n") == 0, fd;
	const char *device, *name, *root;
	struct tree tree;
	char table[2048];

	if (argc != 4 && !only_print) {
		dprintf(2, "usage: open-verity [-n] DEVICE NAME ROOT\n");
		return 2;
	}
	device = argv[argc - 3];
	name = argv[argc - 2];
	root = argv[argc - 1];
	if (strlen(root) != 2 * HASH || strspn(root, "0123456789abcdefABCDEF") != 2 * HASH)
		return say(device, "the root hash is not 64 hexadecimal digits");
	if (strlen(name) == 0 || strlen(name) > MAX_NAME || strchr(name, '/') || strlen(device) > 256) {
		dprintf(2, "open-verity: NAME has 1 to %d characters and no slash\n", MAX_NAME);
		return 2;
	}
	fd = open(device, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fail(device, "cannot be opened");
	if (read_tree(fd, device, &tree) != 0)
		return 1;
	snprintf(table, sizeof(table), "1 %s %s %u %u %llu %llu sha256 %s %s 1 panic_on_corruption", device, device, tree.data_block,
		 tree.hash_block, (unsigned long long)tree.data_blocks,
		 (unsigned long long)((tree.offset + SUPERBLOCK + tree.hash_block - 1) / tree.hash_block), root, tree.salt);
	if (only_print) {
		printf("0 %llu verity %s\n", (unsigned long long)(tree.data_blocks * (tree.data_block / 512)), table);
		return 0;
	}
	return make_device(device, name, &tree, table);
}
