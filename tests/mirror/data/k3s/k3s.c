/* Copyright: labrack contributors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 *
 * The program of a stand-in for k3s: one file that tells its version, unpacks itself into the data directory and goes on
 * from there, as k3s' own does (k3s-io/k3s:cmd/k3s/main.go). What it does there is k3s.py, which is appended to it with
 * its length in ten digits. A copy under the name of containerd's shim stands for a pod: it only stays.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char version[64] = "@K3S-VERSION@";
static pid_t child;

static void fail(const char *what) {
    fprintf(stderr, "k3s: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void make(const char *path) {
    char part[512];
    snprintf(part, sizeof part, "%s", path);
    for (char *at = part + 1;; at++) {
        if (*at == '/' || *at == 0) {
            char kept = *at;
            *at = 0;
            if (mkdir(part, 0755) && errno != EEXIST) fail(part);
            *at = kept;
            if (!kept) return;
        }
    }
}

/* Copy bytes of this program to a file, by rename. */
static void put(const char *path, long from, long count) {
    char draft[600], block[65536];
    snprintf(draft, sizeof draft, "%s.%d", path, getpid());
    int in = open("/proc/self/exe", O_RDONLY), out = open(draft, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    if (in < 0 || out < 0 || lseek(in, from, SEEK_SET) < 0) fail(draft);
    while (count > 0) {
        ssize_t got = read(in, block, count < (long)sizeof block ? (size_t)count : sizeof block);
        if (got <= 0 || write(out, block, got) != got) fail(draft);
        count -= got;
    }
    close(in);
    close(out);
    if (rename(draft, path)) fail(path);
}

static void notify(void) {
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (!path) return;
    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + strlen(path);
    if (to.sun_path[0] == '@') to.sun_path[0] = 0;
    int way = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sendto(way, "READY=1", 7, 0, (struct sockaddr *)&to, length);
    close(way);
}

static void stop(int number) {
    (void)number;
    if (child > 0) kill(child, SIGTERM);
}

/* Have k3s.py run as a child, so that this process is the service's, and tell systemd when the child is ready. */
static int serve(char *script, char **argv) {
    int ways[2];
    if (pipe(ways)) fail("pipe");
    signal(SIGTERM, stop);
    child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGTERM, SIG_DFL);
        dup2(ways[1], 3);
        char *args[64] = {"python3", script, version};
        for (int place = 1; argv[place] && place < 60; place++) args[place + 2] = argv[place];
        execvp("python3", args);
        fail("python3");
    }
    close(ways[1]);
    char told;
    ssize_t got;
    while ((got = read(ways[0], &told, 1)) < 0 && errno == EINTR) {}
    if (got == 1) notify();
    int status;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

int main(int argc, char **argv) {
    char folder[256], inner[300], script[300], shim[320], trailer[11] = "";
    char *name = basename(strdup(argv[0]));
    if (strncmp(name, "containerd-shim", 15) == 0) {
        for (;;) pause();
    }
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("k3s version %s (5a1c0ffe)\ngo version go1.26.4\n", version);
        return 0;
    }
    snprintf(folder, sizeof folder, "/var/lib/rancher/k3s/data/%s-standin/bin", version);
    snprintf(inner, sizeof inner, "%s/k3s", folder);
    snprintf(script, sizeof script, "%s/k3s.py", folder);
    snprintf(shim, sizeof shim, "%s/containerd-shim-runc-v2", folder);
    if (access(script, R_OK)) {
        make(folder);
        int self = open("/proc/self/exe", O_RDONLY);
        long size = lseek(self, 0, SEEK_END);
        if (pread(self, trailer, 10, size - 10) != 10) fail("trailer");
        close(self);
        put(inner, 0, size);
        put(shim, 0, size);
        put(script, size - 10 - atol(trailer), atol(trailer));
    }
    int service = argc > 1 && (strcmp(argv[1], "server") == 0 || strcmp(argv[1], "agent") == 0);
    if (service && !getenv("K3S_DATA_DIR")) {
        setenv("K3S_DATA_DIR", folder, 1);
        execv(inner, argv);
        fail(inner);
    }
    if (service) return serve(script, argv);
    char *args[64] = {"python3", script, version};
    int count = 3;
    if (strcmp(name, "kubectl") == 0 || strcmp(name, "crictl") == 0 || strcmp(name, "ctr") == 0) args[count++] = name;
    for (int place = 1; place < argc && count < 62; place++) args[count++] = argv[place];
    execvp("python3", args);
    fail("python3");
}
