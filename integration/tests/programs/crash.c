/* Reads where nothing is mapped: the kernel ends it by SIGSEGV, also as process 1 of a PID namespace, which is deaf to
   signals that others send. */
int main(void) { return *(volatile int *)8; }
