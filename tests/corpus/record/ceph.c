/* Ceph: nothing is ever connected; every pool and namespace is there, and no image. */
#include "record.h"

#include <errno.h>

int rados_create(void **cluster, const char *id)
{
    RECORD("s:id", id);
    *cluster = dummy;
    return 0;
}

int rados_conf_read_file(void *cluster, const char *path)
{
    (void)cluster;
    RECORD("s:path", path);
    return 0;
}

int rados_conf_set(void *cluster, const char *option, const char *value)
{
    (void)cluster;
    RECORD("s:option", option, "s:value", value);
    return 0;
}

int rados_connect(void *cluster)
{
    (void)cluster;
    return 0;
}

void rados_shutdown(void *cluster)
{
    (void)cluster;
}

int rados_ioctx_create(void *cluster, const char *pool, void **io)
{
    (void)cluster;
    RECORD("s:pool", pool);
    *io = dummy;
    return 0;
}

void rados_ioctx_set_namespace(void *io, const char *name)
{
    (void)io;
    RECORD("s:namespace", name);
}

int rbd_namespace_exists(void *io, const char *name, bool *exists)
{
    (void)io, (void)name;
    *exists = true;
    return 0;
}

void rados_ioctx_destroy(void *io)
{
    (void)io;
}

int rbd_open(void *io, const char *image, void **handle, const char *snapshot)
{
    (void)io, (void)handle;
    RECORD("s:image", image, "s:snapshot", snapshot, "stop");
    return -ENOENT;
}
