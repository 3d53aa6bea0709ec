/* NFS: every export is there, and no file in it. */
#include "record.h"

#include <errno.h>
#include <stdint.h>

#define NFS_NUMBER(function, result, type, end)          \
    result function(void *context, type value)           \
    {                                                    \
        (void)context;                                   \
        RECORD("d:value", (long)value);                  \
        end;                                             \
    }

NFS_NUMBER(nfs_set_uid, void, int, return)
NFS_NUMBER(nfs_set_gid, void, int, return)
NFS_NUMBER(nfs_set_tcp_syncnt, void, int, return)
NFS_NUMBER(nfs_set_readahead, void, uint32_t, return)
NFS_NUMBER(nfs_set_pagecache, void, uint32_t, return)
NFS_NUMBER(nfs_set_pagecache_ttl, void, uint32_t, return)
NFS_NUMBER(nfs_set_debug, void, int, return)

int nfs_mount(void *context, const char *server, const char *path)
{
    (void)context;
    RECORD("s:server", server, "s:path", path);
    return 0;
}

int nfs_umount(void *context)
{
    (void)context;
    return 0;
}

int nfs_open(void *context, const char *path, int flags, void **file)
{
    (void)context, (void)file;
    RECORD("s:path", path, "d:flags", (long)flags, "stop");
    return -ENOENT;
}
