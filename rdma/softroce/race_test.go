//go:build race

package softroce

// raceDetector: tests that are long without it run on less.
const raceDetector = true
