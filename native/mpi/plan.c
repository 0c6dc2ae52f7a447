/* Reads the plan file: lines of a key and values, in any order. */
#define _GNU_SOURCE
#include "plan.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 4096, GRIDS_MOST = 1 << 16 };
static const char BLANK[] = " \t\r\n";

static int whole(const char *text, int64_t least, int64_t most, int64_t *value) {
    char *end;
    if (!text || !*text) return 0;
    errno = 0;
    const long long read = strtoll(text, &end, 10);
    *value = read;
    return !errno && !*end && read >= least && read <= most;
}

static int real(const char *text, double *value) {
    char *end;
    if (!text || !*text) return 0;
    *value = strtod(text, &end);
    return !*end && isfinite(*value);
}

static int word(const char *text, const char *const *words, int *value) {
    for (*value = 0; text && words[*value]; ++*value)
        if (!strcmp(text, words[*value])) return 1;
    return 0;
}

static int copied(const char *text, char *to, size_t size) {
    if (!text || !*text || strlen(text) >= size) return 0;
    strcpy(to, text);
    return 1;
}

static int read_grid(char **save, dm_plan *plan) {
    int64_t n[7];
    double sigma = 0;
    static const int64_t least[] = {1, 0, -500, 0, 0, 0, 16},
                         most[] = {1 << 20, 40, 500, (int64_t)1 << 50, 48, INT32_MAX, 32};
    for (int i = 0, field = 0; field < 8; field++) {
        const char *text = strtok_r(NULL, BLANK, save);
        if (field == 2 ? !real(text, &sigma) : !whole(text, least[i], most[i], &n[i])) return 0;
        i += field != 2;
    }
    if (sigma < 0 || sigma > DITHER_MAX_SIGMA || plan->grid_count >= GRIDS_MOST) return 0;
    dm_grid *more = realloc(plan->grids, ((size_t)plan->grid_count + 1) * sizeof *more);
    if (!more) return 0;
    plan->grids = more;
    more[plan->grid_count++] = (dm_grid){
        (int)n[0], (int)n[1], sigma, {(int)n[2], n[3], (int)n[4], n[5], (int)n[6]}};
    return 1;
}

static int read_clear(char **save, dm_plan *plan) {
    for (const char *name; (name = strtok_r(NULL, BLANK, save));)
        if (plan->clear_count == DM_CLEAR_MOST ||
            !copied(name, plan->clear[plan->clear_count++], DM_NAME))
            return 0;
    return 1;
}

/* The keys with one value. */
static int read_value(const char *key, const char *text, dm_plan *plan) {
    static const char *const modes[] = {"private", "encrypted", "test", NULL};
    static const char *const paths[] = {"auto", "shm", "mpi", NULL};
    static const char *const trusts[] = {"local", "central", NULL};
    int64_t n = 0;
    int choice = 0, good = 0;
    if (!strcmp(key, "dither-mpi")) return whole(text, 1, 1, &n);
    if (!strcmp(key, "trust")) return word(text, trusts, &choice); /* sigma says it already */
    if (!strcmp(key, "clip")) return real(text, &plan->clip);
    if (!strcmp(key, "timeout")) return real(text, &plan->timeout);
    if (!strcmp(key, "socket")) return copied(text, plan->socket, DM_SOCKET);
    if (!strcmp(key, "token")) return copied(text, plan->token, sizeof plan->token);
    if (!strcmp(key, "mode")) good = word(text, modes, &choice), plan->mode = (dm_mode)choice;
    if (!strcmp(key, "path")) good = word(text, paths, &choice), plan->path = (dm_path)choice;
    if (!strcmp(key, "ranks")) good = whole(text, 1, 1 << 20, &n), plan->ranks = (int)n;
    if (!strcmp(key, "pool")) good = whole(text, 0, (int64_t)1 << 40, &n), plan->pool = (size_t)n;
    if (!strcmp(key, "warm")) good = whole(text, 0, 1, &n), plan->warm = (int)n;
    if (!strcmp(key, "lease")) good = whole(text, 1, 1 << 20, &n), plan->lease = (uint64_t)n;
    return good;
}

static const char *read_line(char *line, dm_plan *plan) {
    static char wrong[192];
    char *save = NULL;
    const char *key = strtok_r(line, BLANK, &save);
    if (!key || *key == '#') return NULL;
    int good;
    if (!strcmp(key, "grid"))
        good = read_grid(&save, plan);
    else if (!strcmp(key, "allow_clear"))
        good = read_clear(&save, plan);
    else
        good = read_value(key, strtok_r(NULL, BLANK, &save), plan);
    const char *rest = strtok_r(NULL, BLANK, &save);
    if (good && (!rest || *rest == '#')) return NULL;
    snprintf(wrong, sizeof wrong, "the line '%.100s' is not one that this build understands", key);
    return wrong;
}

static const char *check(const dm_plan *plan) {
    if (!(plan->clip > 0)) return "it has no clip bound";
    if (!(plan->timeout > 0 && plan->timeout < 1e9)) return "its timeout is out of range";
    if (!*plan->socket || strlen(plan->token) != DM_TOKEN) return "it names no agent";
    if (plan->ranks < 1 || plan->grid_count < 1) return "it has no ranks or no lattice";
    if (plan->mode == DM_PRIVATE)
        for (int g = 0; g < plan->grid_count; g++)
            if (!(plan->grids[g].sigma > 0)) return "it has a lattice without noise";
    return NULL;
}

static const char *read_all(const char *path, dm_plan *plan) {
    char line[LINE];
    int first = 1;
    const char *wrong = NULL;
    memset(plan, 0, sizeof *plan);
    plan->lease = 1;
    plan->timeout = 86400;
    FILE *file = fopen(path, "re");
    if (!file) return "it cannot be read";
    while (!wrong && fgets(line, sizeof line, file)) {
        if (!strchr(line, '\n') && !feof(file)) wrong = "a line is too long";
        if (first && strncmp(line, "dither-mpi ", 11)) wrong = "it does not begin as a plan does";
        first = 0;
        if (!wrong) wrong = read_line(line, plan);
    }
    fclose(file);
    if (!wrong && first) wrong = "it is empty";
    return wrong ? wrong : check(plan);
}

/* Numbers are written with a point, whatever the program's language writes. */
const char *dm_plan_read(const char *path, dm_plan *plan) {
    const locale_t plain = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    if (!plain) return "there is no memory to read it";
    const locale_t before = uselocale(plain);
    const char *wrong = read_all(path, plan);
    uselocale(before);
    freelocale(plain);
    return wrong;
}
