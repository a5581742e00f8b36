/* A link with a fixed one-way delay between two network namespaces.
 *
 *   link NEAR NEAR_ADDRESS FAR FAR_ADDRESS ONE_WAY_MICROSECONDS DEVICE
 *
 * A TUN device in each namespace; what one sends is given to the other after the delay, in order. Segmentation is left
 * to the far device (TSO), with an MTU of 1500, so that TCP counts segments as it would on a wire. Ends when killed;
 * its devices vanish with it.
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

enum { PACKET_BYTES = 65536 + 64, WAITING = 32768 };

struct packet { int64_t due; ssize_t size; char *bytes; };

struct way {
    int from, to;
    struct packet waiting[WAITING];
    size_t head, count;
    pthread_mutex_t lock;
    pthread_cond_t some;
};

static int64_t delay;

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
        int64_t due = now() + delay;
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
}

static int device(const char *space, const char *name, const char *own, const char *other)
{
    char path[256], command[512];
    int home = open("/proc/self/ns/net", O_RDONLY);
    snprintf(path, sizeof path, "/var/run/netns/%s", space);
    int there = open(path, O_RDONLY);
    if (there < 0 || setns(there, CLONE_NEWNET))
        fail(space);
    int tun = open("/dev/net/tun", O_RDWR);
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request) || ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4))
        fail("tun");
    snprintf(command, sizeof command,
             "ip addr add %s peer %s dev %s && ip link set %s mtu 1500 txqueuelen 20000 up", own, other, name, name);
    if (system(command) || setns(home, CLONE_NEWNET))
        fail(command);
    close(there);
    close(home);
    return tun;
}

int main(int count, char **arguments)
{
    if (count != 7) {
        fprintf(stderr, "usage: link NEAR NEAR_ADDRESS FAR FAR_ADDRESS ONE_WAY_MICROSECONDS DEVICE\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    delay = strtoll(arguments[5], NULL, 10) * 1000;
    int near = device(arguments[1], arguments[6], arguments[2], arguments[4]);
    int far = device(arguments[3], arguments[6], arguments[4], arguments[2]);
    static struct way ways[2];
    ways[0].from = ways[1].to = near;
    ways[0].to = ways[1].from = far;
    for (int number = 0; number < 2; number++) {
        pthread_t thread;
        pthread_mutex_init(&ways[number].lock, NULL);
        pthread_cond_init(&ways[number].some, NULL);
        if (pthread_create(&thread, NULL, take, &ways[number]) || pthread_create(&thread, NULL, give, &ways[number]))
            fail("thread");
    }
    for (;;)
        pause();
}
