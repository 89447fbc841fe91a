/* Answers each datagram on UDP port 99 with its own bytes; a container mounts it, as busybox has no UDP server. */
#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(99)};
    if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) != 0) return 1;
    for (;;) {
        char bytes[1500];
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t count = recvfrom(fd, bytes, sizeof bytes, 0, (struct sockaddr *)&from, &length);
        if (count >= 0) sendto(fd, bytes, count, 0, (struct sockaddr *)&from, length);
    }
}
