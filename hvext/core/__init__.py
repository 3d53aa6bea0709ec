"""The pure part: values in, values out. Nothing here touches a file, a process, a socket or the clock."""
