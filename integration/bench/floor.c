/*
 * The floor: the fewest system calls that make the isolation which the benchmark's default bundle asks for, then run
 * its /bin/true, wait, and remove what was made. It parses nothing, checks nothing and reports nothing; no runtime can
 * be faster by much, and how much slower one is tells what its own work costs.
 *
 *   floor ROOTFS CGROUP-NAME      on cgroup v1 or hybrid: a group in every hierarchy below /sys/fs/cgroup
 *
 * Build: cc -O2 -static -no-pie -o floor floor.c
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/sched.h>

#define MUST(call) do { if ((call) < 0) err(1, "%s", #call); } while (0)

static const char *masked_dirs[] = {"proc/acpi", "proc/asound", "proc/scsi", "sys/firmware"};
static const char *masked_files[] = {"proc/kcore", "proc/keys", "proc/latency_stats", "proc/timer_list",
                                     "proc/timer_stats", "proc/sched_debug"};
static const char *read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};

/* The hierarchies of the machine: a directory below /sys/fs/cgroup each, and the group that is made in it. */
static struct { char name[64], group[512]; } groups[32];
static int count;

static void nodes(void)
{
	static const struct { const char *name; int minor; } devices[] = {
		{"dev/null", 3}, {"dev/zero", 5}, {"dev/full", 7}, {"dev/random", 8}, {"dev/urandom", 9}};
	for (unsigned i = 0; i < sizeof devices / sizeof *devices; i++)
		MUST(mknod(devices[i].name, S_IFCHR | 0666, makedev(1, devices[i].minor)));
	MUST(mknod("dev/tty", S_IFCHR | 0666, makedev(5, 0)));
	MUST(symlink("pts/ptmx", "dev/ptmx"));
	MUST(symlink("/proc/self/fd", "dev/fd"));
	MUST(symlink("/proc/self/fd/0", "dev/stdin"));
	MUST(symlink("/proc/self/fd/1", "dev/stdout"));
	MUST(symlink("/proc/self/fd/2", "dev/stderr"));
}

/* What the spec mounts on /sys/fs/cgroup: in a cgroup namespace a tmpfs with each v1 hierarchy, none of them writable. */
static void cgroup_mounts(void)
{
	const unsigned long flags = MS_NOSUID | MS_NOEXEC | MS_NODEV;
	MUST(mount("tmpfs", "sys/fs/cgroup", "tmpfs", flags, "mode=755"));
	for (int i = 0; i < count; i++) {
		char target[128], data[96];
		if (strcmp(groups[i].name, "unified") == 0)
			continue;
		snprintf(target, sizeof target, "sys/fs/cgroup/%.63s", groups[i].name);
		MUST(mkdir(target, 0755));
		snprintf(data, sizeof data, strcmp(groups[i].name, "systemd") ? "%.63s" : "none,name=%.63s",
		         groups[i].name);
		MUST(mount("cgroup", target, "cgroup", flags | MS_RDONLY, data));
	}
	MUST(mount(NULL, "sys/fs/cgroup", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | flags, NULL));
}

static void mounts(const char *rootfs)
{
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(mount(rootfs, rootfs, NULL, MS_BIND | MS_REC, NULL));
	MUST(chdir(rootfs));
	MUST(mount("proc", "proc", "proc", 0, NULL));
	MUST(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"));
	MUST(mkdir("dev/pts", 0755));
	MUST(mkdir("dev/shm", 0755));
	MUST(mkdir("dev/mqueue", 0755));
	MUST(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"));
	MUST(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k"));
	MUST(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
	MUST(mount("sysfs", "sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL));
	cgroup_mounts();
	nodes();
	for (unsigned i = 0; i < sizeof masked_dirs / sizeof *masked_dirs; i++)
		mount("tmpfs", masked_dirs[i], "tmpfs", MS_RDONLY, "nr_inodes=2,size=0");
	for (unsigned i = 0; i < sizeof masked_files / sizeof *masked_files; i++)
		mount("dev/null", masked_files[i], NULL, MS_BIND, NULL);
	for (unsigned i = 0; i < sizeof read_only / sizeof *read_only; i++)
		if (mount(read_only[i], read_only[i], NULL, MS_BIND | MS_REC, NULL) == 0)
			mount(NULL, read_only[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

static void child(const char *rootfs)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{1 << 5 | 1 << 10 | 1 << 29, 1 << 5 | 1 << 10 | 1 << 29, 0}};
	const struct rlimit files = {1024, 1024};
	/* Its root is where its maker is: so it is made here, and not by the clone. */
	MUST(unshare(CLONE_NEWCGROUP));
	mounts(rootfs);
	MUST(syscall(SYS_pivot_root, ".", "."));
	MUST(umount2(".", MNT_DETACH));
	MUST(sethostname("bench", 5));
	MUST(mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL));
	for (int capability = 0; capability <= 40; capability++)
		if (capability != 5 && capability != 10 && capability != 29)
			prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
	MUST(setrlimit(RLIMIT_NOFILE, &files));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(syscall(SYS_capset, &header, data));
	char *argv[] = {"/bin/true", NULL}, *envp[] = {"PATH=/bin", NULL};
	execve(argv[0], argv, envp);
	err(1, "execve");
}

/* Rule by rule, as the kernel takes them: none, then the devices that every container has. */
static void device_rules(const char *group)
{
	static const char *allowed[] = {"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm",
	                                "c 5:0 rwm", "c 5:2 rwm", "c 10:200 rwm", "c 136:* rwm"};
	char file[600];
	int fd;
	snprintf(file, sizeof file, "%s/devices.deny", group);
	MUST(fd = open(file, O_WRONLY | O_CLOEXEC));
	MUST(write(fd, "a", 1));
	close(fd);
	snprintf(file, sizeof file, "%s/devices.allow", group);
	MUST(fd = open(file, O_WRONLY | O_CLOEXEC));
	for (unsigned i = 0; i < sizeof allowed / sizeof *allowed; i++)
		MUST(write(fd, allowed[i], strlen(allowed[i])));
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(2, "usage: floor ROOTFS CGROUP-NAME");
	DIR *hierarchies = opendir("/sys/fs/cgroup");
	for (struct dirent *entry; hierarchies && count < 32 && (entry = readdir(hierarchies));) {
		if (entry->d_name[0] == '.' || entry->d_type != DT_DIR)
			continue;
		/* Where version 2 is hidden, its mount point is still there. */
		if (strcmp(entry->d_name, "unified") == 0 && access("/sys/fs/cgroup/unified/cgroup.procs", F_OK) < 0)
			continue;
		snprintf(groups[count].name, sizeof groups[count].name, "%.63s", entry->d_name);
		snprintf(groups[count].group, sizeof groups[count].group, "/sys/fs/cgroup/%.63s/%s", entry->d_name, argv[2]);
		if (mkdir(groups[count].group, 0755) == 0)
			count++;
	}
	struct clone_args args = {.flags = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS,
	                          .exit_signal = SIGCHLD};
	int pipe_ends[2];
	char byte;
	MUST(pipe2(pipe_ends, O_CLOEXEC));
	pid_t pid = syscall(SYS_clone3, &args, sizeof args);
	MUST(pid);
	if (pid == 0) {
		MUST(read(pipe_ends[0], &byte, 1));
		child(argv[1]);
	}
	for (int i = 0; i < count; i++) {
		char file[600], text[16];
		if (strcmp(groups[i].name, "devices") == 0)
			device_rules(groups[i].group);
		snprintf(file, sizeof file, "%s/cgroup.procs", groups[i].group);
		int fd = open(file, O_WRONLY | O_CLOEXEC);
		if (fd >= 0 && write(fd, text, snprintf(text, sizeof text, "%d", pid)) < 0 && !strstr(file, "cpuset"))
			warn("%s", file);
		close(fd);
	}
	MUST(write(pipe_ends[1], "", 1));
	int status;
	MUST(waitpid(pid, &status, 0));
	for (int i = 0; i < count; i++)
		rmdir(groups[i].group);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
