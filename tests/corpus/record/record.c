/* Writing calls down, and finding the functions behind ours. */
#define _GNU_SOURCE
#include "record.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char dummy[4096];

static void put_bytes(FILE *out, const char *bytes, size_t size)
{
    fputc('"', out);
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = bytes[i];
        if (byte < 0x20 || byte > 0x7e || byte == '"' || byte == '\\') {
            fprintf(out, "\\u%04x", byte);
        } else {
            fputc(byte, out);
        }
    }
    fputc('"', out);
}

void record(const char *call, ...)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int fd = -1;
    const char *path = getenv("HVEXT_RECORD");
    char *line = NULL;
    size_t size = 0;
    va_list arguments;

    if (!path) {
        return;
    }
    FILE *out = open_memstream(&line, &size);
    fprintf(out, "{\"call\": \"%s\"", call);
    va_start(arguments, call);
    for (const char *name; (name = va_arg(arguments, const char *));) {
        if (!strcmp(name, "stop")) {
            fprintf(out, ", \"stop\": true");
            continue;
        }
        fprintf(out, ", \"%s\": ", name + 2);
        if (name[0] == 's') {
            const char *text = va_arg(arguments, const char *);
            text ? put_bytes(out, text, strlen(text)) : (void)fprintf(out, "null");
        } else if (name[0] == 'b') {
            const char *bytes = va_arg(arguments, const char *);
            put_bytes(out, bytes, va_arg(arguments, size_t));
        } else {
            fprintf(out, "%ld", va_arg(arguments, long));
        }
    }
    va_end(arguments);
    fprintf(out, "}\n");
    fclose(out);
    pthread_mutex_lock(&lock);
    if (fd < 0) {
        fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    }
    if (write(fd, line, size) != (ssize_t)size) {
        abort();
    }
    pthread_mutex_unlock(&lock);
    free(line);
}

bool recording(void)
{
    return getenv("HVEXT_RECORD") != NULL;
}

struct sought {
    const char *start;
    char path[4096];
};

static int find_library(struct dl_phdr_info *info, size_t size, void *data)
{
    struct sought *sought = data;
    const char *slash = strrchr(info->dlpi_name, '/');
    const char *name = slash ? slash + 1 : info->dlpi_name;

    (void)size;
    if (strncmp(name, sought->start, strlen(sought->start))) {
        return 0;
    }
    snprintf(sought->path, sizeof(sought->path), "%s", info->dlpi_name);
    return 1;
}

void *behind(const char *library, const char *function)
{
    struct sought sought = {.start = library};
    void *handle, *found = NULL;

    if (dl_iterate_phdr(find_library, &sought) && (handle = dlopen(sought.path, RTLD_LAZY | RTLD_NOLOAD))) {
        found = dlsym(handle, function);
        dlclose(handle);
    }
    if (!found) {
        fprintf(stderr, "recording: no %s in %s\n", function, library);
        abort();
    }
    return found;
}
