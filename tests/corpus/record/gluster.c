/* GlusterFS: every volume is there, and no file in it. */
#include "record.h"

#include <errno.h>

void *glfs_new(const char *volume)
{
    RECORD("s:volume", volume);
    return dummy;
}

int glfs_set_volfile_server(void *fs, const char *transport, const char *host, int port)
{
    (void)fs;
    RECORD("s:transport", transport, "s:host", host, "d:port", (long)port);
    return 0;
}

int glfs_set_logging(void *fs, const char *file, int level)
{
    (void)fs;
    RECORD("s:file", file, "d:level", (long)level);
    return 0;
}

int glfs_set_xlator_option(void *fs, const char *translator, const char *key, const char *value)
{
    (void)fs, (void)translator, (void)key, (void)value;
    return 0;
}

int glfs_init(void *fs)
{
    (void)fs;
    return 0;
}

int glfs_fini(void *fs)
{
    (void)fs;
    return 0;
}

void *glfs_open(void *fs, const char *path, int flags)
{
    (void)fs;
    RECORD("s:path", path, "d:flags", (long)flags, "stop");
    errno = ENOENT;
    return NULL;
}
