/* core_test [NAME...]: run the named parts, or all. `normals` and `draws`: what Python checks. */
#include "check.h"

static const struct {
    const char *name;
    void (*run)(void);
} parts[] = {{"codec", test_codec},     {"exact", test_exact}, {"key", test_key},
             {"lattice", test_lattice}, {"norm", test_norm},   {"paths", test_paths},
             {"pool", test_pool},       {"shm", test_shm}};
enum { PARTS = sizeof parts / sizeof *parts };

static void run(const char *name) {
    for (size_t i = 0; i < PARTS; i++)
        if (strcmp(name, parts[i].name) == 0) {
            parts[i].run();
            printf("%s passed\n", name);
            return;
        }
    fprintf(stderr, "no part is called %s\n", name);
    exit(2);
}

int main(int count, char **names) {
    if (count == 2 && strcmp(names[1], "normals") == 0) {
        report_normals(stdout);
        return 0;
    }
    if (count == 2 && strcmp(names[1], "draws") == 0) {
        report_draws(stdout);
        return 0;
    }
    path_list paths = every_path();
    for (size_t i = 0; i < paths.count; i++) printf("path %s\n", dither_kernels_name(paths.of[i]));
    for (int i = 1; i < count; i++) run(names[i]);
    for (size_t i = 0; count == 1 && i < PARTS; i++) run(parts[i].name);
    return 0;
}
