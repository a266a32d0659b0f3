//go:build !soak

package porttest

// killRounds is how often SurvivesKilledPeer kills each end.
const killRounds = 3
