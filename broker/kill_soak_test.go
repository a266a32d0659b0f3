//go:build soak

package broker_test

const kills = 30
