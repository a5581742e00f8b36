/* Links with a fixed one-way delay between the network namespace it is started in and a new one of its own.
 *
 *   link ONE_WAY_MICROSECONDS...
 *
 * For each delay a TUN device on either side, "etl0", "etl1" and so on: near 10.99.N.1, far 10.99.N.2. What one sends is
 * given to the other after the delay, in order. Segmentation is left to the far device (TSO), with an MTU of 1500, so
 * that TCP counts segments as it would on a wire. Prints "up" once everything is there and runs until it is killed;
 * namespace and devices vanish with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { PACKET_BYTES = 65536 + 64, WAITING = 32768, MOST = 8 };

struct packet { int64_t due; ssize_t size; char *bytes; };

struct way {
    int from, to;
    int64_t delay;
    struct packet waiting[WAITING];
    size_t head, count;
    pthread_mutex_t lock;
    pthread_cond_t some;
};

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void *take(void *argument)
{
    struct way *way = argument;
    char *bytes = malloc(PACKET_BYTES);
    for (;;) {
        ssize_t size = read(way->from, bytes, PACKET_BYTES);
        if (size <= 0) {
            if (errno == EINTR)
                continue;
            fail("read");
        }
        int64_t due = now() + way->delay;
        pthread_mutex_lock(&way->lock);
        if (way->count < WAITING) {
            struct packet *packet = &way->waiting[(way->head + way->count++) % WAITING];
            packet->due = due;
            packet->size = size;
            packet->bytes = malloc(size);
            memcpy(packet->bytes, bytes, size);
            pthread_cond_signal(&way->some);
        }
        pthread_mutex_unlock(&way->lock);
    }
    return NULL; /* never */
}

static void *give(void *argument)
{
    struct way *way = argument;
    prctl(PR_SET_TIMERSLACK, 1);
    for (;;) {
        pthread_mutex_lock(&way->lock);
        while (!way->count)
            pthread_cond_wait(&way->some, &way->lock);
        struct packet packet = way->waiting[way->head];
        way->head = (way->head + 1) % WAITING;
        way->count--;
        pthread_mutex_unlock(&way->lock);
        struct timespec due = {packet.due / 1000000000, packet.due % 1000000000};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
            ;
        if (write(way->to, packet.bytes, packet.size) < 0)
            perror("write"); /* the device goes down: the packet is lost, as on a wire */
        free(packet.bytes);
    }
    return NULL; /* never */
}

static int device(int number, int own, int other)
{
    char command[512];
    int tun = open("/dev/net/tun", O_RDWR);
    struct ifreq request;
    memset(&request, 0, sizeof request);
    snprintf(request.ifr_name, IFNAMSIZ, "etl%d", number);
    request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request) || ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4))
        fail("tun");
    snprintf(command, sizeof command,
             "ip addr add 10.99.%d.%d peer 10.99.%d.%d dev etl%d && ip link set etl%d mtu 1500 txqueuelen 20000 up",
             number, own, number, other, number, number);
    if (system(command))
        fail(command);
    return tun;
}

static void join(int near, int far, int64_t delay)
{
    struct way *ways = calloc(2, sizeof *ways);
    ways[0].from = ways[1].to = near;
    ways[0].to = ways[1].from = far;
    for (int number = 0; number < 2; number++) {
        pthread_t thread;
        ways[number].delay = delay;
        pthread_mutex_init(&ways[number].lock, NULL);
        pthread_cond_init(&ways[number].some, NULL);
        if (pthread_create(&thread, NULL, take, &ways[number]) || pthread_create(&thread, NULL, give, &ways[number]))
            fail("thread");
    }
}

int main(int count, char **arguments)
{
    int near[MOST];
    int links = count - 1;
    if (links < 1 || links > MOST) {
        fprintf(stderr, "usage: link ONE_WAY_MICROSECONDS...\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int number = 0; number < links; number++)
        near[number] = device(number, 1, 2);
    if (unshare(CLONE_NEWNET) || system("ip link set lo up"))
        fail("namespace");
    for (int number = 0; number < links; number++)
        join(near[number], device(number, 2, 1), strtoll(arguments[number + 1], NULL, 10) * 1000);
    puts("up");
    fflush(stdout);
    for (;;)
        pause();
}
