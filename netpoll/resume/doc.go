// Package resume carries messages over connections that break: a Session survives
// its connections, and every message that one end's Send took reaches the other
// end's handler once and in order, or the session ends with an error and hands back
// what was not acknowledged. It works on any transport of a netpoll.Loop.
//
// The end that dials chooses a random session ID, and connects again when the
// connection breaks. Messages carry sequence numbers; the receiving session
// acknowledges what its handler has taken, with data that goes the other way or
// after a short while alone. What is not acknowledged is kept, in a bounded queue,
// and sent again on the next connection from where the peer says it is. What comes
// twice is dropped.
//
// A process that restarts has no sessions any more: its peers' sessions end with
// ErrLost, for what had been acknowledged cannot be told from what was not. A queue
// that survives processes is a broker's work.
//
// # Frame
//
// Each message of the connection begins with 20 bytes, big-endian:
//
//	0   kind: 1 Hello, 2 Welcome, 3 Data, 4 Ack, 5 Bye, 6 Refusal
//	1   version: 1
//	2   flags, 16 bits; bit 0, in Hello: the session was welcomed before
//	4   sequence number, 64 bits: of Data and Bye; else of the oldest that this end still holds
//	12  acknowledgement, 64 bits: the sequence number that this end expects next
//
// and goes on with the payload of Data, the 16 bytes of the session ID of a Hello,
// or the text of a Refusal. Sequence numbers begin with 1.
//
// The dialling end sends Hello on every connection, the other one answers Welcome or
// Refusal. Bye is the last message of an end that closes, acknowledged like data; its
// receiver closes too.
package resume
