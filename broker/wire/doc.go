// Package wire is the request protocol between clients, proxies and brokers:
// binary frames, one to a message of netpoll. docs/PROTOCOL.md specifies it byte
// by byte.
//
// Parse functions return views into the bytes they are given and allocate only
// for errors; Append functions append one frame to dst. All integers are
// little-endian. Nothing here keeps state: any goroutine.
package wire
