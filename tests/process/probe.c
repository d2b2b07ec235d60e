/* Writes what a process has inherited into the file that its argument names.
 * Built statically by test_inheritance.py and run as the init of a container. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void copy(FILE *out, const char *name, const char *path)
{
    char line[512];
    FILE *file = fopen(path, "r");

    if (file && fgets(line, sizeof line, file))
        fprintf(out, "%s: %s%s", name, line, strchr(line, '\n') ? "" : "\n");
    if (file)
        fclose(file);
}

int main(int argc, char **argv)
{
    static const char *const fields[] = {"Groups:", "NoNewPrivs:", "Seccomp", "Spec", "SigBlk:",
                                         "SigIgn:", "Cpus_allowed:", "Mems_allowed:"};
    unsigned char schedule[56] = {0};
    unsigned long nodes[16] = {0};
    struct rlimit limit;
    char line[4096];
    int mode = 0;
    FILE *out = fopen(argv[argc - 1], "w"), *status = fopen("/proc/self/status", "r");

    if (!out || !status)
        return 1;
    fprintf(out, "personality: %d\n", personality(0xFFFFFFFF));
    fprintf(out, "ioprio: %ld\n", syscall(SYS_ioprio_get, 1, 0));
    syscall(SYS_sched_getattr, 0, schedule, sizeof schedule, 0);
    fprintf(out, "schedule:");
    for (size_t i = 4; i < sizeof schedule; i++)
        fprintf(out, " %x", schedule[i]);
    fprintf(out, "\nsecurebits: %d\n", prctl(PR_GET_SECUREBITS, 0L, 0L, 0L, 0L));
    fprintf(out, "timerslack: %d\n", prctl(PR_GET_TIMERSLACK, 0L, 0L, 0L, 0L));
    fprintf(out, "mce: %d\n", prctl(PR_MCE_KILL_GET, 0L, 0L, 0L, 0L));
    fprintf(out, "thp: %d\n", prctl(PR_GET_THP_DISABLE, 0L, 0L, 0L, 0L));
    fprintf(out, "io flusher: %d\n", prctl(58, 0L, 0L, 0L, 0L));
    fprintf(out, "mdwe: %d\n", prctl(66, 0L, 0L, 0L, 0L));
    fprintf(out, "ksm: %d\n", prctl(68, 0L, 0L, 0L, 0L));
    syscall(SYS_get_mempolicy, &mode, nodes, sizeof nodes * 8, 0, 0);
    fprintf(out, "memory policy: %d %lx\n", mode, nodes[0]);
    fprintf(out, "session keyring: %ld\n", syscall(SYS_keyctl, 0, -3, 0));
    getrlimit(RLIMIT_NOFILE, &limit);
    fprintf(out, "files: %ju %ju\n", (uintmax_t)limit.rlim_cur, (uintmax_t)limit.rlim_max);
    fprintf(out, "umask: %o\n", umask(0));
    copy(out, "coredump filter", "/proc/self/coredump_filter");
    copy(out, "oom score", "/proc/self/oom_score_adj");
    copy(out, "login", "/proc/self/loginuid");
    while (fgets(line, sizeof line, status))
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
            if (!strncmp(line, fields[i], strlen(fields[i])))
                fputs(line, out);
    return fclose(out) != 0;
}
