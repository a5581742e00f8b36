/* The ceiling: pure FTP protocol work by threads, and nothing else.
 *
 *   ceiling FOLDER OUT THREADS <names
 *
 * Moves FOLDER/name of one server to OUT/name of another. Each thread has a connection to both and streams one file
 * after the other: EPSV+RETR in one write, on the other side RNFR+RNTO of the last file + EPSV+STOR in one write, to a
 * temporary name. No jobs, no sizes asked, no other safety than reading every reply. The servers are in the
 * environment: SOURCE and TARGET, "address port user password". Prints the seconds from the first file, with all
 * connections logged in, to the last rename.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK_BYTES = 256 * 1024, LINE_BYTES = 1024, MOST_THREADS = 64, WAIT_SECONDS = 30 };

struct server { char host[64], user[64], password[64]; int port; };
struct control { int socket; struct sockaddr_in address; char text[8192]; size_t start, end; };

static struct server source, target;
static const char *folder, *out;
static char **names;
static size_t count, next_name;
static pthread_barrier_t ready;

static void fail(const char *what)
{
    fprintf(stderr, "ceiling: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int dial(const struct sockaddr_in *address)
{
    int one = 1, made = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval limit = {WAIT_SECONDS, 0};
    setsockopt(made, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(made, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (made < 0 || connect(made, (const struct sockaddr *)address, sizeof *address))
        fail("connect");
    return made;
}

static void put(int to, const char *bytes, size_t size, int flags)
{
    while (size) {
        ssize_t sent = send(to, bytes, size, flags | MSG_NOSIGNAL);
        if (sent < 0)
            fail("send");
        bytes += sent;
        size -= sent;
    }
}

static void say(struct control *control, const char *format, ...)
{
    char line[4 * LINE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (size >= (int)sizeof line)
        fail("name too long");
    put(control->socket, line, size, 0);
}

/* Read one reply into `line`; end the program unless its first digit is the expected one. */
static void hear(struct control *control, char expected, char *line)
{
    for (;;) {
        char *begin = control->text + control->start;
        char *end = memchr(begin, '\n', control->end - control->start);
        if (end) {
            size_t size = end - begin < LINE_BYTES ? end - begin : LINE_BYTES - 1;
            memcpy(line, begin, size);
            line[size] = 0;
            control->start = end + 1 - control->text;
            if (size > 3 && line[3] == '-')
                continue; /* more lines follow */
            if (line[0] != expected) {
                errno = 0;
                fail(line);
            }
            return;
        }
        memmove(control->text, begin, control->end - control->start);
        control->end -= control->start;
        control->start = 0;
        ssize_t size = recv(control->socket, control->text + control->end, sizeof control->text - control->end, 0);
        if (size <= 0)
            fail("reply");
        control->end += size;
    }
}

static void login(struct control *control, const struct server *server)
{
    char line[LINE_BYTES];
    memset(control, 0, sizeof *control);
    control->address.sin_family = AF_INET;
    control->address.sin_port = htons(server->port);
    inet_pton(AF_INET, server->host, &control->address.sin_addr);
    control->socket = dial(&control->address);
    hear(control, '2', line);
    say(control, "USER %s\r\n", server->user);
    hear(control, '3', line);
    say(control, "PASS %s\r\n", server->password);
    hear(control, '2', line);
    say(control, "TYPE I\r\n");
    hear(control, '2', line);
}

/* Read the answer to EPSV and connect to the port in it. */
static int data(struct control *control)
{
    char line[LINE_BYTES];
    struct sockaddr_in address = control->address;
    hear(control, '2', line);
    char *port = strstr(line, "|||");
    if (!port)
        fail(line);
    address.sin_port = htons(atoi(port + 3));
    return dial(&address);
}

static void *work(void *unused)
{
    struct control from, to;
    char line[LINE_BYTES], renames[3 * LINE_BYTES] = "", *block = malloc(BLOCK_BYTES);
    (void)unused;
    login(&from, &source);
    login(&to, &target);
    pthread_barrier_wait(&ready);
    for (;;) {
        size_t number = __atomic_fetch_add(&next_name, 1, __ATOMIC_RELAXED);
        if (number >= count)
            break;
        say(&from, "EPSV\r\nRETR %s/%s\r\n", folder, names[number]);
        say(&to, "%sEPSV\r\nSTOR %s/%s.part\r\n", renames, out, names[number]);
        if (*renames) {
            hear(&to, '3', line);
            hear(&to, '2', line);
        }
        int reading = data(&from), writing = data(&to);
        for (;;) {
            ssize_t size = recv(reading, block, BLOCK_BYTES, 0);
            if (size < 0)
                fail("data");
            if (!size)
                break;
            put(writing, block, size, 0);
        }
        close(reading);
        close(writing);
        for (int reply = 0; reply < 2; reply++)
            hear(&from, reply ? '2' : '1', line);
        for (int reply = 0; reply < 2; reply++)
            hear(&to, reply ? '2' : '1', line);
        snprintf(renames, sizeof renames, "RNFR %s/%s.part\r\nRNTO %s/%s\r\n", out, names[number], out, names[number]);
    }
    if (*renames) {
        say(&to, "%s", renames);
        hear(&to, '3', line);
        hear(&to, '2', line);
    }
    pthread_barrier_wait(&ready);
    return NULL;
}

static void read_server(const char *name, struct server *server)
{
    const char *text = getenv(name);
    if (!text || sscanf(text, "%63s %d %63s %63s", server->host, &server->port, server->user, server->password) != 4)
        fail(name);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int given, char **arguments)
{
    char line[LINE_BYTES];
    struct control control;
    int threads = given == 4 ? atoi(arguments[3]) : 0;
    if (threads < 1 || threads > MOST_THREADS) {
        fprintf(stderr, "usage: ceiling FOLDER OUT THREADS <names\n");
        return 2;
    }
    folder = arguments[1];
    out = arguments[2];
    read_server("SOURCE", &source);
    read_server("TARGET", &target);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        names = realloc(names, (count + 1) * sizeof *names);
        names[count++] = strdup(line);
    }
    login(&control, &target);
    say(&control, "MKD %s\r\n", out);
    hear(&control, '2', line);
    for (int number = 0, last = 0; number < count; number++) {
        int length = strcspn(names[number], "/");
        if (!names[number][length] || (number && !strncmp(names[number], names[last], length + 1)))
            continue;
        last = number;
        say(&control, "MKD %s/%.*s\r\n", out, length, names[number]);
        hear(&control, '2', line);
    }
    close(control.socket);
    pthread_barrier_init(&ready, NULL, threads + 1);
    for (int number = 0; number < threads; number++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, NULL))
            fail("thread");
    }
    pthread_barrier_wait(&ready);
    double started = now();
    pthread_barrier_wait(&ready);
    printf("%.6f\n", now() - started);
    return 0;
}
