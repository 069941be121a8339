/* Asks the process that has the real cuDNN what it would choose: a line there, a line back, one connection a question.
 *
 * DNNMEM_VGPU_CUDNN names the socket: a path, or `@` and a name that is no file. Answers are kept, so an operation is
 * asked for once in a process.
 */
#include "dnn_workspace.h"

#include "virtual_gpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define WAIT_SECONDS 60 /* the first question makes cuDNN load; a server that takes longer is not asked again */

typedef struct answer {
    char *question;
    dnn_engine *engines;
    size_t count;
    struct answer *next;
} answer;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static answer *answers;
static long unknown;
static bool silent; /* the server did not answer in time */
static const dnn_engine no_workspace;

/* How many operations have no known workspace. */
EXPORT long vg_dnn_unknown(void)
{
    pthread_mutex_lock(&lock);
    long count = unknown;
    pthread_mutex_unlock(&lock);
    return count;
}

static int open_connection(void)
{
    const char *name = getenv("DNNMEM_VGPU_CUDNN");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!name || !*name || strlen(name) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, name);
    if (*name == '@')
        address.sun_path[0] = 0;
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
    int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection < 0)
        return -1;
    struct timeval wait = {.tv_sec = WAIT_SECONDS};
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
    if (connect(connection, (struct sockaddr *)&address, *name == '@' ? size : size + 1) == 0)
        return connection;
    close(connection);
    return -1;
}

static bool say(int connection, const char *text, size_t left)
{
    while (left) {
        ssize_t sent = send(connection, text, left, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        text += sent;
        left -= (size_t)sent;
    }
    return true;
}

/* One line, which the caller frees; NULL if there is none. */
static char *hear(int connection)
{
    size_t used = 0, room = 4096;
    char *line = malloc(room);
    while (line) {
        ssize_t got = recv(connection, line + used, room - used - 1, 0);
        if (got <= 0) {
            free(line);
            return NULL;
        }
        used += (size_t)got;
        line[used] = 0;
        if (line[used - 1] == '\n')
            return line;
        if (room - used < 2) {
            char *larger = realloc(line, room *= 2);
            if (!larger)
                free(line);
            line = larger;
        }
    }
    return NULL;
}

/* What the server says; NULL if it cannot be asked. */
static char *ask(const char *question)
{
    int connection = silent ? -1 : open_connection();
    if (connection < 0)
        return NULL;
    bool asked = say(connection, question, strlen(question)) && say(connection, "\n", 1);
    char *line = asked ? hear(connection) : NULL;
    close(connection);
    silent = !line;
    return line;
}

/* The numbers of [[38, 25837584, 1, 0], ...]; count 0 if `line` is no such list. */
static dnn_engine *read_engines(const char *line, size_t *count)
{
    *count = 0;
    size_t room = 0;
    for (const char *c = line; *line == '[' && *c; c++)
        room += *c == '[';
    dnn_engine *engines = calloc(room + 1, sizeof *engines);
    for (char *at = (char *)line + 1; engines && room > 1 && *count < room - 1; ++*count) {
        int64_t *fields[] = {&engines[*count].index, &engines[*count].workspace, &engines[*count].notes,
                             &engines[*count].behavior};
        for (size_t i = 0; i < 4; i++) {
            at += strcspn(at, "-0123456789");
            *fields[i] = strtoll(at, &at, 10);
        }
    }
    return engines;
}

static answer *find_out(const char *question)
{
    answer *made = calloc(1, sizeof *made);
    char *kept = strdup(question), *line = ask(question);
    if (made) {
        *made = (answer){.question = kept, .next = answers};
        made->engines = line ? read_engines(line, &made->count) : NULL;
        unknown += !made->count;
    }
    free(line);
    return made;
}

const dnn_engine *dnn_engines(const char *question, size_t *count)
{
    pthread_mutex_lock(&lock);
    answer *it = answers;
    while (it && strcmp(it->question, question) != 0)
        it = it->next;
    if (!it && (it = find_out(question)) && it->question)
        answers = it;
    pthread_mutex_unlock(&lock);
    bool known = it && it->count && it->engines;
    *count = known ? it->count : 1;
    return known ? it->engines : &no_workspace;
}
