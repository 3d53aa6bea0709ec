/* NBD: a server that takes notes and then knows no such export. */
#define _GNU_SOURCE
#include "record.h"

#include <endian.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct option_head {
    uint64_t magic;
    uint32_t option, size;
} __attribute__((packed));

struct reply {
    uint64_t magic;
    uint32_t option, type, size;
} __attribute__((packed));

enum { GO = 7, STARTTLS = 5, STRUCTURED_REPLY = 8, SET_META_CONTEXT = 10 };
static const uint64_t OPTION_MAGIC = 0x49484156454f5054, REPLY_MAGIC = 0x3e889045565a9;
static const uint32_t ACK = 1, UNSUPPORTED = 0x80000001u, UNKNOWN = 0x80000006u;

static bool receive(int fd, void *bytes, size_t size)
{
    return size == 0 || recv(fd, bytes, size, MSG_WAITALL) == (ssize_t)size;
}

static uint32_t number_at(const char *bytes)
{
    uint32_t number;

    memcpy(&number, bytes, sizeof(number));
    return be32toh(number);
}

static void note_option(uint32_t option, const char *data, size_t size)
{
    size_t name = size >= 4 ? number_at(data) : 0;

    if (option == STARTTLS) {
        record("nbd_starttls", "stop", NULL);
    } else if (option == GO && name + 4 <= size) {
        record("nbd_go", "b:export", data + 4, name, "stop", NULL);
    } else if (option == SET_META_CONTEXT && name + 8 <= size) {
        record("nbd_set_meta_context", "b:export", data + 4, name, "b:queries", data + 8 + name, size - name - 8, NULL);
    }
}

static void *serve(void *data)
{
    int fd = (int)(intptr_t)data;
    const struct {
        char magic[16];
        uint16_t flags;
    } __attribute__((packed)) greeting = {"NBDMAGICIHAVEOPT", htobe16(3)};
    struct option_head head;
    char flags[4];
    static __thread char bytes[1 << 16];

    if (send(fd, &greeting, sizeof(greeting), MSG_NOSIGNAL) > 0 && receive(fd, flags, sizeof(flags))) {
        while (receive(fd, &head, sizeof(head)) && be64toh(head.magic) == OPTION_MAGIC) {
            uint32_t option = be32toh(head.option), size = be32toh(head.size);
            if (size > sizeof(bytes) || !receive(fd, bytes, size)) {
                break;
            }
            note_option(option, bytes, size);
            bool ack = option == STRUCTURED_REPLY || option == SET_META_CONTEXT;
            struct reply reply = {
                .magic = htobe64(REPLY_MAGIC),
                .option = head.option,
                .type = htobe32(ack ? ACK : option == GO ? UNKNOWN : UNSUPPORTED),
            };
            if (send(fd, &reply, sizeof(reply), MSG_NOSIGNAL) != sizeof(reply)) {
                break;
            }
        }
    }
    close(fd);
    return NULL;
}

int become_nbd_client(int fd)
{
    int pair[2];
    pthread_t thread;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        return -1;
    }
    dup3(pair[0], fd, O_CLOEXEC);
    close(pair[0]);
    pthread_create(&thread, NULL, serve, (void *)(intptr_t)pair[1]);
    pthread_detach(thread);
    return 0;
}
