/* The rank's end of the launcher's socket, and the releases that this rank may still make.
 *
 * What the agent granted is charged in this rank's ledger already. Of that, communicators reserve
 * some; the rest is kept here for the next that asks. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "mpi_core.h"

enum { ANSWER = 1024, SHARE = 16 };
static const uint64_t SOON_NS = 50000000; /* leases used up within this grow */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int agent = -1;
static pid_t owner;
static uint64_t kept; /* granted, and reserved by no communicator */
static uint64_t left; /* what the agent may still grant, as it last said */
static uint64_t usual, last_taken; /* what one take asks for; when it last was */

static int sent(const char *text, size_t size) {
    while (size > 0) {
        const ssize_t some = send(agent, text, size, MSG_NOSIGNAL);
        if (some < 0 && errno == EINTR) continue;
        if (some <= 0) return 0;
        text += some;
        size -= (size_t)some;
    }
    return 1;
}

/* One question, one line of answer. */
static int ask(const char *question, char answer[ANSWER]) {
    size_t used = 0;
    if (agent < 0 || getpid() != owner || !sent(question, strlen(question))) return 0;
    while (used < ANSWER - 1) {
        const ssize_t some = recv(agent, answer + used, ANSWER - 1 - used, 0);
        if (some < 0 && errno == EINTR) continue;
        if (some <= 0) return 0;
        used += (size_t)some;
        if (answer[used - 1] != '\n') continue;
        answer[used - 1] = 0;
        return 1;
    }
    return 0;
}

void dm_agent_open(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char question[256], answer[ANSWER];
    memcpy(address.sun_path, dm.plan.socket, strlen(dm.plan.socket) + 1);
    owner = getpid();
    left = UINT64_MAX;
    usual = dm.plan.lease;
    agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (agent < 0 || connect(agent, (struct sockaddr *)&address, sizeof address) != 0)
        dm_die("the launcher does not answer (%s); start the program by 'dither mpirun', with all "
               "ranks on the launcher's host",
               strerror(errno));
    snprintf(question, sizeof question, "hello %s %d %d %ld\n", dm.plan.token, dm.rank, dm.size,
             (long)owner);
    if (!ask(question, answer)) dm_die("the launcher went away while rank %d said hello", dm.rank);
    if (strcmp(answer, "ok") != 0)
        dm_die("the launcher refused rank %d: %s", dm.rank,
               strncmp(answer, "error ", 6) ? answer : answer + 6);
}

/* Ask for as many as are missing to `wanted`. */
static void lease(uint64_t wanted) {
    char question[64], answer[ANSWER];
    uint64_t granted = 0, more = 0;
    if (kept >= wanted || left == 0) return;
    snprintf(question, sizeof question, "lease %" PRIu64 "\n", wanted - kept);
    if (!ask(question, answer) ||
        sscanf(answer, "granted %" SCNu64 " %" SCNu64, &granted, &more) != 2 ||
        granted > wanted - kept) {
        left = 0; /* the launcher is gone: nothing can be charged any more */
        return;
    }
    kept += granted;
    left = more;
}

/* Asking costs some hundred sums of one number, so a program of many calls asks for more at once; but only for
 * a small part of what is left, so that what idle communicators hold, and what is lost by a crash, stays small. */
static uint64_t wanted_now(void) {
    const uint64_t now = dm_now();
    if (now - last_taken < SOON_NS)
        usual *= 2;
    else if (usual > dm.plan.lease)
        usual /= 2;
    last_taken = now;
    const uint64_t most = left == UINT64_MAX ? dm.plan.lease : (left + kept) / SHARE;
    if (usual > most) usual = most;
    return usual > 0 ? usual : (usual = 1);
}

uint64_t dm_budget_take(void) {
    pthread_mutex_lock(&lock);
    const uint64_t wanted = wanted_now();
    lease(wanted);
    const uint64_t taken = kept < wanted ? kept : wanted;
    kept -= taken;
    pthread_mutex_unlock(&lock);
    return taken;
}

int dm_budget_one(void) {
    pthread_mutex_lock(&lock);
    if (kept == 0) lease(wanted_now());
    const int paid = kept > 0;
    kept -= (uint64_t)paid;
    pthread_mutex_unlock(&lock);
    return paid;
}

void dm_budget_return(uint64_t releases) {
    pthread_mutex_lock(&lock);
    kept += releases;
    pthread_mutex_unlock(&lock);
}

static void tell(const char *what) {
    char answer[ANSWER], *figures = dm_stats_json();
    const size_t size = figures ? strlen(figures) + 64 : 0;
    char *question = figures ? malloc(size) : NULL;
    if (question) {
        snprintf(question, size, "%s %s\n", what, figures);
        pthread_mutex_lock(&lock);
        (void)ask(question, answer);
        pthread_mutex_unlock(&lock);
    }
    free(question);
    free(figures);
}

void dm_agent_figures(void) {
    if (dm.ready) tell("stats");
}

void dm_agent_bye(void) {
    char what[64];
    snprintf(what, sizeof what, "bye %" PRIu64, (uint64_t)dm_stats.releases);
    tell(what);
    if (agent >= 0) close(agent);
    agent = -1;
}
