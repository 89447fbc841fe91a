/*
 * Runs a program and writes the most memory that it, or a child it waited for, ever held (getrusage(2), in KiB) to
 * descriptor 9. A process inherits the figure of whoever forked it, so this one is as small as can be.
 *
 *   launch PROGRAM [ARGUMENT...] 9>FIGURE
 *
 * Build: cc -O2 -static -no-pie -o launch launch.c
 */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct rusage usage;
	int status;
	if (argc < 2)
		return 2;
	pid_t pid = fork();
	if (pid == 0) {
		close(9);
		execv(argv[1], argv + 1);
		_exit(127);
	}
	if (pid < 0 || wait4(pid, &status, 0, &usage) != pid)
		return 1;
	dprintf(9, "%ld\n", usage.ru_maxrss);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
