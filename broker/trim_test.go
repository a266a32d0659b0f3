package broker

import (
	"context"
	"testing"
	"time"
)

// LookToTrim makes a server look whether there is memory to give back, and tells
// whether it will look again.
func LookToTrim(s *Server) (again bool, err error) {
	err = s.Loop().Do(func() { s.trim.look(); again = s.trim.armed })
	return again, err
}

const TrimFloor = trimFloor

// The timer arms with work, and rests when there is nothing to give back: its own
// cycle is none.
func TestTrimmerRests(t *testing.T) {
	s, err := NewServer(Config{DataDir: t.TempDir(), Listen: []string{"tcp://127.0.0.1:0"}, Logger: quietLogger})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	defer func() {
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}()
	for armed := false; !armed; { // by the hook behind the function, or behind the next one
		if err := s.Loop().Do(func() { armed = s.trim.armed }); err != nil {
			t.Fatal(err)
		}
		if ctx.Err() != nil {
			t.Fatal("no cycle with work armed it")
		}
	}
	idle := false
	if err := s.Loop().Do(func() { s.trim.look(); s.trim.cycleEnd(); idle = !s.trim.armed }); err != nil || !idle {
		t.Errorf("its own cycle armed it again (%v)", err)
	}
}
