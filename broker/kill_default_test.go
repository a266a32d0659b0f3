//go:build !soak

package broker_test

// kills for each of the three transports: 21 together; `make soak` has more.
const kills = 7
