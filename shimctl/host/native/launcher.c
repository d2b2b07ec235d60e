/* The native launcher: does in C, without an interpreter, the work of shim/start/launcher.py.
 *
 * It sends start, delete and -info to a running fork server, prints the answer and
 * exits with its status; shim/start/launcher.py describes the protocol.  For every other
 * command line, and after a failure, it executes Python; only for an error of stdin, and a
 * start or -info without an answer at its limit, it prints the error itself.  If it has not
 * connected to a server, it runs CODE, which looks for a server again and logs why it
 * uses none.  If it has, it runs ALONE, which does the work without a server, and passes
 * the time at which this program began.
 *
 * `shimctl install` defines VERSION, PACKAGE and PYTHON, with the values of the
 * interpreter that runs CODE or ALONE, and DIRECTORY, all as in shim/start/identity.py.
 * For a test, PRINT_PATH makes the program print the path of the server's socket, and
 * PRINT_IDENTITY the text that is hashed into that path.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Milliseconds, as in shim/start/launcher.py. */
#define TICK 100
#define KILL_TIMEOUT 1000
#define BUSY 60000
#define STDIN_TIMEOUT 10000
#define STDIN_LIMIT (10 << 20)

/* The most arguments, and the most bytes of a request, that are sent to a server.  A
 * manager sends fewer, and a socket's buffer accepts this many at once. */
#define MAX_WORDS 64
#define MAX_REQUEST 32768
/* The longest path of the sockets' directory, as in shim/start/identity.py. */
#define DIRECTORY_MAX 90
#define MAX_ANSWER 65536
/* The result of receive if no packet has come. */
#define LATE -2

/* The commands that a server runs, each with its time limits in milliseconds: until the
 * server acknowledges the request, until a child accepts it, for the work, and for the
 * whole action. */
static const struct action {
    const char *name;
    int heard, taken, work, limit;
} actions[] = {{"start", 900, 5000, 10000, 16000},
               {"-info", 900, 5000, 10000, 16000},
               {"delete", 400, 900, 4500, 4500}};

/* The text of a file of /proc, or an answer.  A longer file would be cut here but not in
 * Python, and the two hashes would differ. */
static char text[MAX_ANSWER];

/* FNV-1a, 64 bits: of the code in front of the attributes, and then of the attributes. */
#define BASIS 0xCBF29CE484222325
static uint64_t hash = BASIS;

static void mix(const char *data, size_t size)
{
#ifdef PRINT_IDENTITY
    fwrite(data, 1, size, stdout);
#endif
    while (size--)
        hash = (hash ^ (unsigned char)*data++) * 0x100000001B3;
}

/* Python joins the lines of an identity with newlines. */
static void add(const char *data, size_t size)
{
    mix("\n", 1);
    mix(data, size);
}

/* Read a whole file into text; make text empty if the file cannot be read. */
static size_t read_text(const char *path)
{
    size_t size = 0;
    ssize_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    while (size < sizeof text - 1 && (got = read(fd, text + size, sizeof text - 1 - size)) > 0)
        size += (size_t)got;
    close(fd);
    if (got < 0)
        size = 0;
    text[size] = '\0';
    return size;
}

static void add_file(const char *name)
{
    char path[64];
    size_t size;

    snprintf(path, sizeof path, "/proc/self/%s", name);
    size = read_text(path);
    while (size && (text[size - 1] == '\0' || text[size - 1] == '\n'))
        size--;
    add(text, size);
}

static void mix_number(long value)
{
    char number[24];

    mix(number, (size_t)snprintf(number, sizeof number, "%ld", value));
}

static void mix_hex(const unsigned char *data, size_t size)
{
    char digits[3];

    for (size_t i = 0; i < size; i++) {
        snprintf(digits, sizeof digits, "%02x", data[i]);
        mix(digits, 2);
    }
}

/* Add the attributes that are in no file of /proc: identity._attributes. */
static void add_attributes(void)
{
    static const int names[] = {PR_GET_SECUREBITS, PR_GET_TIMERSLACK, PR_MCE_KILL_GET,
                                PR_GET_THP_DISABLE, 58 /* PR_GET_IO_FLUSHER */,
                                66 /* PR_GET_MDWE */, 68 /* PR_GET_MEMORY_MERGE */};
    unsigned char cookie[8] = {0}, schedule[56] = {0}, mode[4] = {0};
    static unsigned char nodes[128];
    size_t used = sizeof nodes;

    mix("\n", 1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        mix_number(prctl(names[i], 0L, 0L, 0L, 0L));
        mix(" ", 1);
    }
    mix_number(personality(0xFFFFFFFF));
    mix(" ", 1);
    mix_number(syscall(SYS_ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, 0));
    mix(" ", 1);
    mix_number(prctl(62 /* PR_SCHED_CORE */, 0L /* PR_SCHED_CORE_GET */, 0L, 0L, cookie));
    mix(" ", 1);
    mix_hex(cookie, sizeof cookie);
    mix(" ", 1);
    mix_number(syscall(SYS_sched_getattr, 0, schedule, sizeof schedule, 0));
    mix(" ", 1);
    memset(schedule + 16, 0, 4); /* sched_nice, which a child sets to the caller's */
    mix_hex(schedule, sizeof schedule);
    mix(" ", 1);
    mix_number(syscall(SYS_get_mempolicy, mode, nodes, sizeof nodes * 8, 0, 0));
    mix(" ", 1);
    mix_hex(mode, sizeof mode);
    mix(" ", 1);
    while (used && !nodes[used - 1])
        used--;
    mix_hex(nodes, used);
}

static unsigned long long folded(int bits)
{
    return (hash >> bits ^ hash) & ((1ULL << bits) - 1);
}

/* Compute the hashes, of which *code is the one of the code; return whether a server can be
 * used: identity.socket_path. */
static int identify(unsigned long long *code)
{
    static const char *const namespaces[] = {"cgroup", "ipc", "mnt", "net", "pid",
                                             "pid_for_children", "time",
                                             "time_for_children", "user", "uts"};
    static const char *const files[] = {"cgroup", "attr/current", "attr/apparmor/current",
                                        "attr/smack/current", "coredump_filter", "loginuid",
                                        "sessionid", "cpu_resctrl_groups"};
    static const char *const fields[] = {"Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:",
                                         "Seccomp", "Spec"};
    char link[64], path[64];
    struct stat root = {0};
    int filtered = 0;

    mix(VERSION, strlen(VERSION));
    add(PACKAGE, strlen(PACKAGE));
    add(PYTHON, strlen(PYTHON));
    *code = folded(20);
    mix("\n", 1);
    hash = BASIS;
    stat("/", &root);
    snprintf(path, sizeof path, "%ju %ju", (uintmax_t)root.st_dev, (uintmax_t)root.st_ino);
    mix(path, strlen(path));
    for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", namespaces[i]);
        ssize_t length = readlink(path, link, sizeof link);
        if (length < 0)
            add(namespaces[i], strlen(namespaces[i]));
        else
            add(link, (size_t)length);
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        add_file(files[i]);
    read_text("/proc/self/status");
    for (char *rest = text, *line; (line = strsep(&rest, "\n"));) {
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
            if (!strncmp(line, fields[i], strlen(fields[i])))
                add(line, strlen(line));
        filtered |= !strncmp(line, "Seccomp:\t2", 10);
    }
    add_attributes();
    return !filtered;
}

/* Return whether path belongs to this user and no other has rights: launcher.distrust. */
static int trusted(const char *path, mode_t kind)
{
    struct stat info;

    return !lstat(path, &info) && (info.st_mode & S_IFMT) == kind && info.st_uid == geteuid() &&
           !(info.st_mode & 077);
}

/* Return the path of a trusted server's socket, or NULL. */
static const char *find_server(void)
{
    static char path[sizeof ((struct sockaddr_un *)0)->sun_path];
    const char *directory = getenv("TRIO_SHIM_FORKSERVER_DIR");
    unsigned long long code;
    int usable = identify(&code);
    int written;

    if (!directory || *directory != '/' || strlen(directory) > DIRECTORY_MAX)
        directory = DIRECTORY; /* the shim logs why the value is not used */
    written = snprintf(path, sizeof path, "%s/%010llx-%05llx", directory, folded(40), code);
#ifdef PRINT_IDENTITY
    exit(0);
#endif
#ifdef PRINT_PATH
    exit(puts(usable ? path : "") < 0);
#endif
    if (!usable || written >= (int)sizeof path || !trusted(directory, S_IFDIR) ||
        !trusted(path, S_IFSOCK))
        return NULL;
    return path;
}

static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000) + time.tv_nsec / 1000000;
}

static int64_t least(int64_t one, int64_t other)
{
    return one < other ? one : other;
}

static int64_t most(int64_t one, int64_t other)
{
    return one > other ? one : other;
}

/* launcher.buffer_stdin: copy stdin into a file in memory, unless it is a device; return
 * whether it is a copy now.  Errors are printed here, since Python could not read again the
 * bytes that were read here. */
static int buffer_stdin(const char *name)
{
    int64_t deadline = now() + STDIN_TIMEOUT;
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    struct stat info;
    ssize_t got;
    size_t size = 0;
    int memory;

    if (fstat(STDIN_FILENO, &info) || S_ISCHR(info.st_mode))
        return 0;
    memory = memfd_create("stdin", MFD_CLOEXEC);
    if (memory < 0)
        return 0;
    while (size <= STDIN_LIMIT) {
        int64_t left = deadline - now();
        if (poll(&input, 1, left > 0 ? (int)left : 0) == 0) {
            fprintf(stderr, "%s: cannot read standard input: it was not closed within %d s; "
                    "close it or use /dev/null\n", name, STDIN_TIMEOUT / 1000);
            exit(1);
        }
        got = read(STDIN_FILENO, text, sizeof text);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            lseek(memory, 0, SEEK_SET);
            dup2(memory, STDIN_FILENO);
            close(memory);
            return 1;
        }
        if (write(memory, text, (size_t)got) != got)
            break;
        size += (size_t)got;
    }
    fprintf(stderr, "%s: cannot read standard input: it is longer than %d bytes\n", name,
            STDIN_LIMIT);
    exit(1);
}

/* Send "run" and the arguments, separated by NUL, with stdin and a pidfd of this process. */
static int send_request(int sock, int argc, char **argv)
{
    int fds[] = {STDIN_FILENO, (int)syscall(SYS_pidfd_open, getpid(), 0)};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof fds)];
    } control = {0};
    struct iovec words[MAX_WORDS + 1] = {{"run", 4}};
    struct msghdr message = {.msg_iov = words, .msg_iovlen = (size_t)argc + 1,
                             .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    ssize_t sent, total = 4;

    if (fds[1] < 0)
        return -1;
    for (int i = 0; i < argc; i++) {
        words[i + 1] = (struct iovec){argv[i], strlen(argv[i]) + (i + 1 < argc)};
        total += (ssize_t)words[i + 1].iov_len;
    }
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    sent = total > MAX_REQUEST ? -1 : sendmsg(sock, &message, MSG_NOSIGNAL);
    close(fds[1]);
    return sent == total ? 0 : -1;
}

/* launcher._state_of: return the letter of the process's state, X without one. */
static char state_of(pid_t pid)
{
    char path[32], stat[512];
    char *end;
    ssize_t got;
    int fd;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 'X';
    got = read(fd, stat, sizeof stat - 1);
    close(fd);
    stat[got > 0 ? got : 0] = '\0';
    end = strrchr(stat, ')');
    return end && end[1] ? end[2] : 'X';
}

/* launcher.receive: receive the next packet into text.  Set passed to the fd that came with
 * it, or to -1.  Return its size: 0 if the connection is closed, LATE if no packet comes until
 * the deadline or the peer is stuck, -1 on an error.  If the peer waits for a processor then, the
 * deadline is latest, if that is later. */
static ssize_t receive(int sock, int64_t deadline, pid_t peer, int64_t latest, int *passed)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof (int))];
    } control;
    int stuck = 0, sleeping = 0;

    *passed = -1;
    for (;;) {
        struct iovec room = {text, sizeof text - 1};
        struct msghdr message = {.msg_iov = &room, .msg_iovlen = 1,
                                 .msg_control = &control, .msg_controllen = sizeof control};
        struct pollfd ready = {.fd = sock, .events = POLLIN};
        int64_t left = deadline - now();
        ssize_t got;

        if (poll(&ready, 1, left > 0 && left < TICK ? (int)left : TICK) <= 0) {
            char state = state_of(peer);
            stuck = state && strchr("TtZX", state) ? stuck + 1 : 0;
            sleeping = state == 'R' ? 0 : sleeping + 1;
            if (stuck >= 2 || (now() >= deadline && (sleeping > 2 || now() >= latest)))
                return LATE;
            continue;
        }
        got = recvmsg(sock, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (!got) { /* the end, unless a packet came just before it: shim/linux/fdpassing.py */
            message.msg_controllen = sizeof control;
            got = recvmsg(sock, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        }
        if (got < 0)
            return -1;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
            memcpy(passed, CMSG_DATA(header), sizeof *passed);
        text[got] = '\0';
        return got;
    }
}

static void kill_child(int pidfd, int timeout)
{
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};

    if (!syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0))
        poll(&ended, 1, timeout);
}

/* launcher.late_problem: print the error of an action without an answer from child. */
static void print_late(const char *name, const struct action *action, int seconds, pid_t child)
{
    char here[4096];

    if (strcmp(action->name, "start"))
        fprintf(stderr, "%s: cannot finish %s: no answer within %d s", name, action->name, seconds);
    else
        fprintf(stderr, "%s: cannot start the shim: no answer within %d s", name, seconds);
    if (state_of(child) == 'R')
        fprintf(stderr, "; the machine has no free processor, try again later\n");
    else if (strcmp(action->name, "start"))
        fprintf(stderr, "\n");
    else
        fprintf(stderr, "; check the disk of %s, and see the manager's log\n",
                getcwd(here, sizeof here) ? here : "the bundle");
}

static int write_out(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t written = write(fd, data, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return -1;
        data += written;
        size -= (size_t)written;
    }
    return 0;
}

/* Print the answer in text and acknowledge it; return the exit status, or -1 on failure:
 * launcher.print_answer. */
static int print_answer(int sock, size_t size)
{
    const unsigned char *head = (const unsigned char *)text;
    unsigned char status = head[0];
    size_t length;

    if (size < 5)
        return -1;
    length = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 | head[4];
    if (length > size - 5)
        return -1;
    if (write_out(STDOUT_FILENO, text + 5, length) ||
        write_out(STDERR_FILENO, text + 5 + length, size - 5 - length))
        return -1;
    send(sock, "told", 4, MSG_NOSIGNAL);
    return status;
}

/* Send the command to the server at path, with the new socket sock; return the exit status, or
 * -1 if Python has to run it: launcher._converse. */
static int converse(int sock, const char *path, const struct action *action, int64_t end,
                    int argc, char **argv, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval send_timeout = {.tv_usec = action->heard * 1000};
    struct ucred peer;
    socklen_t length = sizeof peer;
    int64_t began, deadline, latest;
    pid_t pid;
    ssize_t got = 0;
    int status = -1, child, none;

    began = now();
    strcpy(address.sun_path, path);
    if (setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &send_timeout, sizeof send_timeout) ||
        connect(sock, (struct sockaddr *)&address, sizeof address) ||
        getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &length) || peer.uid != geteuid() ||
        send_request(sock, argc, argv))
        return -1;
    deadline = began + action->heard;
    latest = end - least(action->work, action->limit - action->taken);
    latest = least(began + action->taken, most(deadline, latest));
    for (pid = peer.pid, child = -1; child < 0;) {
        if (receive(sock, deadline, pid, latest, &child) <= 0)
            return -1;
        if (child >= 0 || !strncmp(text, "child ", 6))
            pid = (pid_t)strtol(text + 6, NULL, 10); /* "taken " is as long */
        else if (!strcmp(text, "heard"))
            deadline = latest;
        else
            return -1;
    }
    /* launcher.latest_answer */
    latest = strcmp(action->name, "start") ? 0 : end + BUSY - action->limit;
    began = now();
    end = least(end, began + action->work);
    if (send(sock, "go", 2, MSG_NOSIGNAL) == 2) {
        got = receive(sock, end, pid, latest, &none);
        if (got > 0 && !strncmp(text, "child ", 6)) /* the server was slower than the child */
            got = receive(sock, end, pid, latest, &none);
        if (got > 0)
            status = print_answer(sock, (size_t)got);
    }
    if (got == LATE && now() >= end) {
        if (strcmp(action->name, "delete")) {
            print_late(name, action, (int)((now() - began) / 1000), pid);
            status = 1;
        }
        kill_child(child, 0); /* it waits for a disk, and cannot end */
    } else if (status < 0)
        kill_child(child, KILL_TIMEOUT); /* Python runs the command again, and not two at once */
    return status;
}

/* Have a server run the command; return the exit status, or -1 if Python has to run it. */
static int run_on_server(const char *path, const struct action *action, int64_t end, int argc,
                         char **argv)
{
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    int status, buffered = 0;
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    /* fds 0 to 2 are the manager's.  One of them is closed if the socket gets its number. */
    if (sock <= STDERR_FILENO)
        return -1;
    if (strcmp(action->name, "delete"))
        buffered = buffer_stdin(name);
    status = converse(sock, path, action, end, argc, argv, name);
    close(sock);
    if (buffered)
        lseek(STDIN_FILENO, 0, SEEK_SET); /* a child that was given up may have read it */
    return status;
}

static const struct action *find_action(int argc, char **argv)
{
    const char *wanted = getenv("TRIO_SHIM_FORKSERVER");

    if (wanted && (!strcmp(wanted, "off") || !strcmp(wanted, "0") || !strcmp(wanted, "no")))
        return NULL;
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (argc > 1 && argc <= MAX_WORDS && !strcmp(argv[argc - 1], actions[i].name))
            return &actions[i];
    return NULL;
}

int main(int argc, char **argv)
{
    const struct action *action;
    const char *path, *code = CODE;
    char began_at[24];
    int64_t began = now();
    int alone = 0;

    if (argc < 1)
        return 1;
    if ((action = find_action(argc, argv)) && (path = find_server())) {
        int status = run_on_server(path, action, began + action->limit, argc, argv);
        if (status >= 0)
            return status;
        code = ALONE;
        alone = 1;
        snprintf(began_at, sizeof began_at, "%jd", (intmax_t)began);
    }
    /* CODE and ALONE remove the first argument, and Python uses the next one, argv[0], as the
     * program's name; for ALONE, the time comes first. */
    char *python[argc + 6];
    python[0] = PYTHON;
    python[1] = "-IS";
    python[2] = "-c";
    python[3] = (char *)code;
    python[4] = began_at;
    memcpy(python + 4 + alone, argv, ((size_t)argc + 1) * sizeof *argv);
    execv(PYTHON, python);
    fprintf(stderr, "%s: cannot run %s: %s; run `shimctl install` again\n", argv[0], PYTHON,
            strerror(errno));
    return 127;
}
