/* The executable's fast path without an interpreter: what shim/launcher.py does.
 *
 * Hands start, delete and -info to a warm fork server and leaves with the status
 * it answers.  Whatever else is asked, and whatever goes wrong, is for Python:
 * it looks again, and what there is to warn of it finds and says itself.  So
 * nothing here may have an effect that a second attempt would repeat.
 *
 * Baked in by `shimctl install`: VERSION, PACKAGE and PYTHON as the interpreter
 * that runs CODE has them, and DIRECTORY, all as in shim/launcher.py.  With
 * PRINT_PATH the program prints where it would look, for the test of that.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* Seconds to be accepted, and to be answered: more than any action takes. */
#define CONNECT 1
#define ANSWER 15

/* More words than this, and more bytes of them, do not come from a manager; a
 * socket's buffer takes this much at once, so a request arrives whole or not. */
#define WORDS 64
#define BYTES 32768

/* Text files of /proc; longer ones would have a hash that Python disagrees with. */
static char text[65536];

static uint64_t hash = 0xCBF29CE484222325; /* FNV-1a, 64 bits */

static void mix(const char *data, size_t size)
{
    while (size--)
        hash = (hash ^ (unsigned char)*data++) * 0x100000001B3;
}

/* Python joins the lines of an identity with newlines. */
static void add(const char *data, size_t size)
{
    mix("\n", 1);
    mix(data, size);
}

/* Read a whole file into text; what cannot be read is empty. */
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

static void identify(void)
{
    static const char *const namespaces[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
    char link[64], path[64];
    size_t size;

    mix(VERSION, strlen(VERSION));
    add(PACKAGE, strlen(PACKAGE));
    add(PYTHON, strlen(PYTHON));
    snprintf(path, sizeof path, "%u %u", geteuid(), getegid());
    add(path, strlen(path));
    for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", namespaces[i]);
        ssize_t length = readlink(path, link, sizeof link);
        if (length < 0)
            add(namespaces[i], strlen(namespaces[i]));
        else
            add(link, (size_t)length);
    }
    size = read_text("/proc/self/cgroup");
    add(text, size);
    size = read_text("/proc/self/attr/current");
    while (size && (text[size - 1] == '\0' || text[size - 1] == '\n'))
        size--;
    add(text, size);
    read_text("/proc/self/status");
    for (char *rest = text, *line; (line = strsep(&rest, "\n"));)
        if (!strncmp(line, "Cap", 3) || !strncmp(line, "NoNewPrivs", 10) ||
            !strncmp(line, "Seccomp:", 8))
            add(line, strlen(line));
}

/* Nobody else could have put it there: what launcher.distrust looks at. */
static int trusted(const char *path, mode_t kind)
{
    struct stat info;

    return !lstat(path, &info) && (info.st_mode & S_IFMT) == kind && info.st_uid == geteuid() &&
           !(info.st_mode & 077);
}

static int connect_to_server(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = CONNECT};
    struct ucred peer;
    socklen_t length = sizeof peer;
    const char *directory = getenv("TRIO_SHIM_FORKSERVER_DIR");
    char *path = address.sun_path;
    int written, sock;

    if (!directory)
        directory = DIRECTORY;
    identify();
    written = snprintf(path, sizeof address.sun_path, "%s/%016llx", directory,
                       (unsigned long long)hash);
#ifdef PRINT_PATH
    exit(puts(path) < 0);
#endif
    if (written >= (int)sizeof address.sun_path || !trusted(directory, S_IFDIR) ||
        !trusted(path, S_IFSOCK))
        return -1;
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* Lower, it would be taken for one of the manager's own fds. */
    if (sock <= STDERR_FILENO || setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience))
        return -1;
    patience.tv_sec = ANSWER;
    if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) ||
        connect(sock, (struct sockaddr *)&address, sizeof address) ||
        getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &length) || peer.uid != geteuid())
        return -1;
    return sock;
}

/* Send "run" and the words, each but the last ended by NUL, and our three fds. */
static int send_request(int sock, int argc, char **argv)
{
    static const int fds[] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof fds)];
    } control = {0};
    struct iovec words[WORDS + 1] = {{"run", 4}};
    struct msghdr message = {.msg_iov = words, .msg_iovlen = (size_t)argc + 1,
                             .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    size_t total = 4;

    for (int i = 0; i < argc; i++) {
        words[i + 1] = (struct iovec){argv[i], strlen(argv[i]) + (i + 1 < argc)};
        total += words[i + 1].iov_len;
    }
    if (total > BYTES)
        return -1;
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    if (sendmsg(sock, &message, MSG_NOSIGNAL) != (ssize_t)total)
        return -1;
    return shutdown(sock, SHUT_WR);
}

static int is_for_a_server(int argc, char **argv)
{
    const char *wanted = getenv("TRIO_SHIM_FORKSERVER");
    const char *last = argv[argc - 1];

    if (wanted && (!strcmp(wanted, "off") || !strcmp(wanted, "0") || !strcmp(wanted, "no")))
        return 0;
    return argc > 1 && argc <= WORDS &&
           (!strcmp(last, "start") || !strcmp(last, "delete") || !strcmp(last, "-info"));
}

int main(int argc, char **argv)
{
    unsigned char status;
    int sock;

    if (argc < 1)
        return 1;
    if (is_for_a_server(argc, argv) && (sock = connect_to_server()) >= 0 &&
        !send_request(sock, argc, argv)) {
        ssize_t got;
        while ((got = recv(sock, &status, 1, 0)) < 0 && errno == EINTR)
            ; /* stopped and continued */
        if (got == 1)
            return status;
    }
    /* Close-on-exec ends the conversation.  CODE takes argv[0] for its own name. */
    char *python[argc + 5];
    python[0] = PYTHON;
    python[1] = "-IS";
    python[2] = "-c";
    python[3] = CODE;
    memcpy(python + 4, argv, ((size_t)argc + 1) * sizeof *argv);
    execv(PYTHON, python);
    fprintf(stderr, "%s: %s: %s: run `shimctl install` again\n", argv[0], PYTHON, strerror(errno));
    return 127;
}
