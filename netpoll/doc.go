// Package netpoll is the event loop of the data path: one goroutine that polls
// any number of transports, hands messages to a Handler, and sleeps when there is
// nothing to do.
//
// A Loop runs a duty cycle over its backends. A loaded loop polls, an idle one
// blocks in epoll; an IdlePolicy decides when. Each backend serves one URL
// scheme; this package holds the first, TCP over epoll.
//
// Thread rules: a Conn and its Handler belong to the loop's goroutine. Other
// goroutines reach them through Loop.Submit, which is bounded.
package netpoll
