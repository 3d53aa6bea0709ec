/* Sockets and names: every host has an address, and behind each there is the NBD server of nbd.c. */
#define _GNU_SOURCE
#include "record.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    char host[INET6_ADDRSTRLEN] = "";

    if (address->sa_family == AF_UNIX) {
        const struct sockaddr_un *name = (const struct sockaddr_un *)address;
        size_t room = size - offsetof(struct sockaddr_un, sun_path);
        record("connect_unix", "b:path", name->sun_path, strnlen(name->sun_path, room), NULL);
    } else if (address->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
        record("connect_tcp", "s:host", host, "d:port", (long)ntohs(in->sin_port), NULL);
    } else if (address->sa_family == AF_VSOCK) {
        const struct sockaddr_vm *vm = (const struct sockaddr_vm *)address;
        record("connect_vsock", "d:cid", (long)vm->svm_cid, "d:port", (long)vm->svm_port, NULL);
    } else {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
        record("connect_tcp", "s:host", host, "d:port", (long)ntohs(in6->sin6_port), NULL);
    }
    if (in_curl) {
        record("refuse", "stop", NULL);
        errno = ECONNREFUSED;
        return -1;
    }
    return become_nbd_client(fd);
}

/* Every name has the address 192.0.2.1; whether there is such a service is the C library's to say. */
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
    int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, __func__);
    struct addrinfo plain = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};

    if (!recording()) {
        return next(node, service, hints, result);
    }
    record("getaddrinfo", "s:host", node, "s:service", service, "d:family", (long)(hints ? hints->ai_family : 0), NULL);
    if (in_curl) {
        record("refuse", "stop", NULL);
        return EAI_NONAME;
    }
    return next(node && *node ? "192.0.2.1" : node, service, &plain, result);
}
