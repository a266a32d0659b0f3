// Package broker is a message broker on the data path: a storage broker (Server,
// and Core without a network), a stateless Proxy in front of it, and a Client of
// either.
//
// A topic has one partition, which is a log (package seglog) of batches as they
// were produced. An acknowledgement means that the batch is in the page cache or
// on the disk, by configuration. A record's offset is its place in the topic,
// from 0.
//
// Server, Proxy and Client each run one netpoll.Loop on a goroutine of their own,
// over whatever backends they are given; package wire is what they speak.
package broker
