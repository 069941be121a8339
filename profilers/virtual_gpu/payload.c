/* Sends small payloads to other ranks and brings in theirs.
 *
 *   DNNMEM_VGPU_EXCHANGE="NAME RANK 1"   the exchange's socket, this process's rank in its job, do all of them run (0)?
 *
 * A payload goes out at once. One that is to come is noted with the address where it belongs, and waited for when
 * that address is touched, or the host waits for the GPU: a rank that runs ahead is not held up, as on a real one.
 * Each thread has a connection of its own, so that one that waits is in nobody's way.
 */
#include "payload.h"
#include "virtual_gpu.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_WISHES 1024

enum { HELLO = 1, JOIN, PUT, GET };

typedef struct {
    uint32_t kind, readers;
    uint64_t group;
    int32_t source, destination;
    uint32_t number, nbytes;
} frame;

typedef struct {
    uint32_t failed, nbytes;
} answer;

static char name[64];
static int rank = -1, together;
static pid_t owner; /* a fork has no part in the exchange */
static __thread int connection = -1;
static __thread bool settling; /* what this thread touches is where it puts a payload */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;     /* of the list */
static pthread_mutex_t arriving = PTHREAD_MUTEX_INITIALIZER; /* whoever needs a payload needs it to be there */
static payload_wish wishes[MAX_WISHES];                      /* oldest first */
static int wish_count;

/* ---- the exchange ---- */

static void settle(uintptr_t start, size_t nbytes);

__attribute__((constructor)) static void read_settings(void)
{
    const char *text = getenv("DNNMEM_VGPU_EXCHANGE");
    if (!text || sscanf(text, "%63s %d %d", name, &rank, &together) != 3)
        return;
    owner = getpid();
    vg_on_touch(settle);
}

int payload_rank(void) { return rank; }
bool payload_together(void) { return rank >= 0 && together; }

static void give_up(const char *operation, const char *why)
{
    char message[512];
    snprintf(message, sizeof message, "in %s, %s", operation, why);
    vg_give_up(message, "all ranks must call the same collectives in the same order, and send what others receive");
}

static void write_all(const void *from, size_t nbytes)
{
    for (const char *at = from; nbytes;) {
        ssize_t done = send(connection, at, nbytes, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            _exit(1); /* whoever started the ranks is gone */
        at += done;
        nbytes -= (size_t)done;
    }
}

static void read_all(void *to, size_t nbytes)
{
    for (char *at = to; nbytes;) {
        ssize_t done = recv(connection, at, nbytes, 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            _exit(1);
        at += done;
        nbytes -= (size_t)done;
    }
}

static void call(void)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    memcpy(to.sun_path + 1, name, length);
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection < 0 || connect(connection, (void *)&to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length)))
        _exit(1);
    frame hello = {.kind = HELLO, .source = rank};
    write_all(&hello, sizeof hello);
}

static void say(uint32_t kind, payload_key key, int readers, const void *body, size_t nbytes)
{
    if (connection < 0)
        call();
    frame it = {kind, (uint32_t)readers, key.group, key.source, key.destination, key.number, (uint32_t)nbytes};
    write_all(&it, sizeof it);
    write_all(body, nbytes);
}

/* The answer to the oldest question of this thread. */
static void hear(const char *operation, void *to, size_t nbytes)
{
    answer said;
    char why[256];
    read_all(&said, sizeof said);
    if (said.failed) {
        size_t length = said.nbytes < sizeof why ? said.nbytes : sizeof why - 1;
        read_all(why, length);
        why[length] = 0;
        give_up(operation, why);
    }
    if (said.nbytes != nbytes) {
        snprintf(why, sizeof why, "rank %d expects %zu bytes and another rank sends %u", rank, nbytes, said.nbytes);
        give_up(operation, why);
    }
    read_all(to, nbytes);
}

static void *buffer_of(size_t nbytes)
{
    void *made = malloc(nbytes ? nbytes : 1);
    if (!made)
        abort();
    return made;
}

/* ---- what the ranks have for each other ---- */

void payload_join(uint64_t group, int rank_in_group)
{
    say(JOIN, (payload_key){.group = group, .source = rank_in_group}, 0, NULL, 0);
}

void payload_put(payload_key key, int readers, uintptr_t from, size_t nbytes)
{
    void *body = buffer_of(nbytes);
    vg_move((uintptr_t)body, from, nbytes);
    say(PUT, key, readers, body, nbytes);
    free(body);
}

void payload_get(payload_key key, const char *operation, void *to, size_t nbytes)
{
    say(GET, key, 0, NULL, 0);
    hear(operation, to, nbytes);
}

static void bring_in(const payload_wish *wish)
{
    char *parts = buffer_of((size_t)wish->count * wish->nbytes);
    payload_key key = wish->first;
    for (int i = 0; i < wish->count; i++, key.source++)
        say(GET, key, 0, NULL, 0);
    for (int i = 0; i < wish->count; i++)
        hear(wish->operation, parts + (size_t)i * wish->nbytes, wish->nbytes);
    int count = wish->count;
    if (wish->reduce) {
        wish->reduce(parts, count, wish->nbytes, wish->how);
        count = 1;
    }
    settling = true;
    for (int i = 0; i < count; i++)
        vg_move(wish->to + (size_t)i * wish->nbytes, (uintptr_t)parts + (size_t)i * wish->nbytes, wish->nbytes);
    settling = false;
    free(parts);
}

static bool belongs_to(const payload_wish *wish, uintptr_t start, size_t nbytes)
{
    size_t size = wish->nbytes * (size_t)(wish->reduce ? 1 : wish->count);
    return nbytes ? wish->to < start + nbytes && start < wish->to + size : !wish->by_hand;
}

/* The oldest payload that belongs there, off the list. */
static bool next_wish(payload_wish *wish, uintptr_t start, size_t nbytes)
{
    pthread_mutex_lock(&lock);
    int at = 0;
    while (at < wish_count && !belongs_to(&wishes[at], start, nbytes))
        at++;
    bool found = at < wish_count;
    if (found) {
        *wish = wishes[at];
        memmove(&wishes[at], &wishes[at + 1], (size_t)(--wish_count - at) * sizeof *wishes);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

/* Bring in what belongs to a piece of memory; to all of it but what is received by hand, if `nbytes` is 0. */
static void settle(uintptr_t start, size_t nbytes)
{
    if (settling || !__atomic_load_n(&wish_count, __ATOMIC_RELAXED) || getpid() != owner)
        return;
    pthread_mutex_lock(&arriving);
    for (payload_wish wish; next_wish(&wish, start, nbytes);)
        bring_in(&wish);
    pthread_mutex_unlock(&arriving);
}

void payload_expect(const payload_wish *wish)
{
    settle(wish->to, wish->nbytes * (size_t)(wish->reduce ? 1 : wish->count));
    pthread_mutex_lock(&arriving);
    payload_wish oldest;
    if (wish_count == MAX_WISHES && next_wish(&oldest, 0, UINTPTR_MAX))
        bring_in(&oldest);
    pthread_mutex_lock(&lock);
    wishes[wish_count++] = *wish;
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&arriving);
}
