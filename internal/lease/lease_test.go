package lease_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/clock"
	testingclock "k8s.io/utils/clock/testing"

	"batchtask.dev/operator/internal/lease"
)

const (
	me            = "host_1"
	renewDeadline = 10 * time.Second
)

// lock is what the API server has of a Lease.
type lock struct {
	resourcelock.Interface
	stored resourcelock.LeaderElectionRecord
	takes  func() // is called while a write is under way
	err    error  // of the answer; the write is carried out all the same
}

func (l *lock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record := l.stored
	return &record, nil, nil
}

func (l *lock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.Update(ctx, record)
}

func (l *lock) Update(_ context.Context, record resourcelock.LeaderElectionRecord) error {
	if l.takes != nil {
		l.takes()
	}
	l.stored = record
	return l.err
}

type leader struct {
	t       *testing.T
	clock   *testingclock.FakeClock
	stored  *lock
	watched resourcelock.Interface
	lease   *lease.Lease
	record  resourcelock.LeaderElectionRecord
}

// elected is a process that has just won a Lease of 15 s.
func elected(t *testing.T) *leader {
	t.Helper()
	clk := testingclock.NewFakeClock(time.Unix(1_700_000_000, 0))
	l := &leader{t: t, clock: clk, stored: &lock{}, lease: lease.Elected(me, renewDeadline, clk)}
	l.watched = l.lease.Watch(l.stored)
	if _, sure := l.lease.Hold(); sure {
		t.Fatal("a process is sure to be elected before it was")
	}
	l.record = resourcelock.LeaderElectionRecord{
		HolderIdentity: me, LeaseDurationSeconds: 15, LeaderTransitions: 3,
		AcquireTime: metav1.NewTime(clk.Now()), RenewTime: metav1.NewTime(clk.Now()),
	}
	if err := l.watched.Create(t.Context(), l.record); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *leader) renew() {
	l.record.RenewTime = metav1.NewTime(l.clock.Now())
	_ = l.watched.Update(l.t.Context(), l.record)
}

func (l *leader) hold() lease.Hold {
	l.t.Helper()
	h, sure := l.lease.Hold()
	if !sure {
		l.t.Fatal("the Lease is not surely held")
	}
	return h
}

func (l *leader) want(h lease.Hold, sure, valid bool) {
	l.t.Helper()
	if h.Sure() != sure || h.Valid() != valid {
		l.t.Errorf("the Lease is sure: %v, valid: %v; want %v, %v", h.Sure(), h.Valid(), sure, valid)
	}
}

func TestDoubtAndEnd(t *testing.T) {
	l := elected(t)
	h := l.hold()
	if h.Epoch() != me+"/3" {
		t.Errorf("epoch %q", h.Epoch())
	}
	l.clock.Step(renewDeadline/2 - time.Nanosecond)
	l.want(h, true, true)
	l.clock.Step(time.Nanosecond)
	l.want(h, false, true)
	l.renew()
	l.want(h, true, true)
	l.clock.Step(15*time.Second - time.Nanosecond)
	l.want(h, false, true)
	l.clock.Step(time.Nanosecond)
	l.want(h, false, false)
	// Whoever is renewed after that may have stood still while another was elected, and what
	// was begun before is over, although the epoch is the same.
	l.renew()
	l.want(h, false, false)
	if again := l.hold(); again.Epoch() != h.Epoch() {
		t.Errorf("the epoch is %q after %q, and the Lease was not another's", again.Epoch(), h.Epoch())
	}
}

// The time counts from before a renewal was sent: its answer may be late.
func TestTimeCountsFromTheSending(t *testing.T) {
	l := elected(t)
	h := l.hold()
	l.clock.Step(2 * time.Second)
	l.stored.takes = func() { l.clock.Step(6 * time.Second) }
	l.renew()
	l.want(h, false, true)
	l.clock.Step(9 * time.Second) // 15 s after it was sent
	l.want(h, false, false)
}

// A renewal without an answer may have been carried out, or not.
func TestLostAnswer(t *testing.T) {
	l := elected(t)
	h := l.hold()
	l.clock.Step(4 * time.Second)
	l.stored.err = errors.New("the API server is away")
	l.renew()
	l.clock.Step(4 * time.Second)
	l.want(h, false, true)
}

// Others read the duration from the record, in whole seconds.
func TestDurationIsThatOfTheRecord(t *testing.T) {
	l := elected(t)
	h := l.hold()
	l.record.LeaseDurationSeconds = 2
	l.renew()
	l.clock.Step(2 * time.Second)
	l.want(h, false, false)
}

func TestAnotherHolds(t *testing.T) {
	l := elected(t)
	h := l.hold()
	l.stored.stored.HolderIdentity = "host_2"
	l.want(h, true, true) // nobody has looked
	if _, _, err := l.watched.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.want(h, false, false)
	// It gives the Lease back, and this process wins it again: the elector does not stop for that.
	l.record.LeaderTransitions = 5
	l.record.AcquireTime = metav1.NewTime(l.clock.Now())
	l.renew()
	l.want(h, false, false)
	if again := l.hold(); again.Epoch() != me+"/5" {
		t.Errorf("epoch %q", again.Epoch())
	}
}

// Somebody deletes the Lease, another wins a new one and gives it back: the transitions are
// what they were.
func TestLeaseDeleted(t *testing.T) {
	l := elected(t)
	h := l.hold()
	l.clock.Step(time.Second)
	l.record.AcquireTime = metav1.NewTime(l.clock.Now())
	l.renew()
	l.want(h, false, false)
	l.hold()
}

// The elector reads the time of winning back from the Lease, which has microseconds.
func TestAcquireTimeInMicroseconds(t *testing.T) {
	l := elected(t)
	l.clock.Step(time.Second)
	l.record.AcquireTime = metav1.NewTime(l.clock.Now().Add(1234 * time.Nanosecond))
	l.renew()
	h := l.hold()
	l.record.AcquireTime = metav1.NewTime(l.record.AcquireTime.Truncate(time.Microsecond))
	l.renew()
	l.want(h, true, true)
}

// Giving the Lease away counts from before it is sent, whatever the answer says.
func TestRelease(t *testing.T) {
	l := elected(t)
	h := l.hold()
	l.stored.takes = func() { l.want(h, false, false) }
	l.stored.err = errors.New("time is over")
	l.record.HolderIdentity = ""
	l.renew()
	l.want(h, false, false)
}

// setClock is a clock that can be set, as that of a machine which was suspended is, without
// time having passed on the other.
type setClock struct {
	clock.RealClock
	ahead time.Duration
}

func (c *setClock) Now() time.Time {
	now := time.Now()
	if c.ahead == 0 {
		return now
	}
	return now.Round(0).Add(c.ahead)
}

func TestSuspendedMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := &setClock{}
		l := lease.Elected(me, renewDeadline, clk)
		watched := l.Watch(&lock{})
		record := resourcelock.LeaderElectionRecord{HolderIdentity: me, LeaseDurationSeconds: 15, AcquireTime: metav1.Now()}
		if err := watched.Update(t.Context(), record); err != nil {
			t.Fatal(err)
		}
		h, _ := l.Hold()
		clk.ahead = time.Hour
		if h.Sure() || h.Valid() {
			t.Error("a process goes on that stood still for an hour of other people's time")
		}
		clk.ahead = 0
		if h.Sure() || h.Valid() {
			t.Error("a term goes on that was over, since a clock was set back")
		}
	})
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := elected(t)
		h := l.hold()
		if err := h.Wait(t.Context()); err != nil {
			t.Errorf("waiting where all is sure: %v", err)
		}
		waiting := func(ctx context.Context) chan error {
			l.clock.Step(renewDeadline / 2)
			done := make(chan error, 1)
			go func() { done <- h.Wait(ctx) }()
			synctest.Wait()
			select {
			case err := <-done:
				t.Fatalf("it has not waited: %v", err)
			default:
			}
			return done
		}
		done := waiting(t.Context())
		l.renew()
		if err := <-done; err != nil {
			t.Errorf("waiting for a renewal: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done = waiting(ctx)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("waiting until the context ends: %v", err)
		}
		l.renew()
		done = waiting(t.Context())
		l.stored.stored.HolderIdentity = "host_2"
		_, _, _ = l.watched.Get(t.Context())
		if err := <-done; !errors.Is(err, lease.ErrOver) {
			t.Errorf("waiting for a Lease that is another's: %v", err)
		}
	})
}

func TestSole(t *testing.T) {
	l := lease.Sole(me)
	h, sure := l.Hold()
	if !sure || !h.Valid() || h.Epoch() != me {
		t.Errorf("sure: %v, valid: %v, epoch %q", sure, h.Valid(), h.Epoch())
	}
	l.StepDown()
	if _, sure := l.Hold(); sure || !h.Valid() {
		t.Errorf("after stepping down: sure: %v, valid: %v; what was begun may end", sure, h.Valid())
	}
	var unbound lease.Hold
	if !unbound.Sure() || !unbound.Valid() || unbound.Wait(t.Context()) != nil {
		t.Error("the zero Hold binds")
	}
}

func TestIdentity(t *testing.T) {
	one, err := lease.Identity()
	other, err2 := lease.Identity()
	if err != nil || err2 != nil || one == other {
		t.Errorf("%q, %v; %q, %v", one, err, other, err2)
	}
}
