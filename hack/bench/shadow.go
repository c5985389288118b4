package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"golang.org/x/sync/errgroup"

	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/shadow"
)

// The shadow service: devices that get their shadows and report to them, QoS 0 as
// device libraries do, against the broker alone, which carries the same messages to
// another client and back. Each device waits for its answer before it sends the next
// message, so as many are on their way as devices are at work, and one that is not
// answered is lost.
const (
	shadowDevices = 256
	roundTrips    = 500
	stepTime      = 2 * time.Second
	writeStepTime = 4 * time.Second
	lostAfter     = 5 * time.Second
	shadowStore   = "Kubernetes store"
	shadowTopic   = shadow.OperationPrefix + productID + "/"
	shadowResult  = shadow.ResultPrefix + productID + "/"
	echoTopic     = "echo/there/"
	echoResult    = "echo/back/"
)

// shadowFlags let each device send as fast as it is answered.
var shadowFlags = []string{"--device-rate=100000", "--device-burst=100000"}

// errLost says that a message was not answered.
var errLost = errors.New("a message was lost")

// kind is a kind of message.
type kind struct {
	topic   string // without the device's name
	writes  bool
	message func(token int) string
}

var (
	updates = kind{shadowTopic, true, func(token int) string {
		return fmt.Sprintf(`{"type":"update","state":{"reported":{"state":"open","n":%d}},"clientToken":"%d"}`, token, token)
	}}
	gets   = kind{shadowTopic, false, func(token int) string { return fmt.Sprintf(`{"type":"get","clientToken":"%d"}`, token) }}
	echoes = kind{echoTopic, false, updates.message}
)

// speaker is one device. One connection serves all.
type speaker struct {
	name    string
	client  paho.Client
	answers chan []byte
	token   int   // of the last message
	version int64 // of the shadow, as the last answer has it
	written int64 // updates that were answered
	unknown int64 // updates that were not
}

func measureShadow(ctx context.Context, env *localenv.Env) ([]figure, error) {
	names := make([]string, shadowDevices)
	for i := range names {
		names[i] = fmt.Sprintf("door-%06d", i)
	}
	progress(fmt.Sprintf("making %d devices", len(names)))
	if err := makeDevices(ctx, env, names); err != nil {
		return nil, err
	}
	speakers, closeAll, err := connectSpeakers(env.MQTTURL, names)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	if err := awaitDevices(ctx, speakers); err != nil {
		return nil, err
	}

	echoTimes, err := times(ctx, speakers, echoes)
	if err != nil {
		return nil, err
	}
	getTimes, err := times(ctx, speakers, gets)
	if err != nil {
		return nil, err
	}
	rates := map[string]float64{}
	for _, c := range []struct {
		name string
		kind kind
		step time.Duration
	}{{"echo", echoes, stepTime}, {"get", gets, stepTime}, {"update", updates, writeStepTime}} {
		if rates[c.name], err = bestRate(ctx, speakers, c.name, c.kind, c.step); err != nil {
			return nil, err
		}
	}
	if err := checkVersions(ctx, speakers); err != nil {
		return nil, err
	}

	const limitIs = "the broker alone, between two clients"
	at := func(percent int) figure {
		measured, limit := getTimes[roundTrips*percent/100], echoTimes[roundTrips*percent/100]
		return figure{
			Case: fmt.Sprintf("get of a shadow, %s, one at a time, p%d of %d", shadowStore, percent, roundTrips), Value: measured, Unit: "ms",
			Limit: limit, LimitIs: limitIs, Ratio: limit / measured,
		}
	}
	rate := func(name, what string) figure {
		return figure{
			Case: fmt.Sprintf("%s, %s, highest rate without loss", what, shadowStore), Value: rates[name], Unit: "messages/s",
			Limit: rates["echo"], LimitIs: limitIs, Ratio: rates[name] / rates["echo"],
		}
	}
	return []figure{at(50), at(99), rate("get", "get of a shadow"), rate("update", "update of a shadow")}, nil
}

// connectSpeakers connects all devices over one connection, and a client that sends
// back whatever comes on echoTopic over another.
func connectSpeakers(brokerURL string, names []string) (speakers []*speaker, closeAll func(), err error) {
	clients := map[string]paho.Client{}
	closeAll = func() {
		for _, c := range clients {
			c.Disconnect(100)
		}
	}
	for _, id := range []string{"bench-devices", "bench-echo"} {
		clients[id] = paho.NewClient(paho.NewClientOptions().AddBroker(brokerURL).SetClientID(id).SetAutoReconnect(false))
		if token := clients[id].Connect(); token.Wait() && token.Error() != nil {
			closeAll()
			return nil, nil, fmt.Errorf("connect %s: %w", id, token.Error())
		}
	}
	byName := map[string]*speaker{}
	for _, name := range names {
		// Room for the answer to a message that was given up for lost.
		s := &speaker{name: name, client: clients["bench-devices"], answers: make(chan []byte, 16)}
		speakers, byName[name] = append(speakers, s), s
	}
	answer := func(_ paho.Client, m paho.Message) {
		select {
		case byName[m.Topic()[strings.LastIndexByte(m.Topic(), '/')+1:]].answers <- m.Payload():
		default:
		}
	}
	echo := func(c paho.Client, m paho.Message) {
		c.Publish(echoResult+strings.TrimPrefix(m.Topic(), echoTopic), 0, false, m.Payload())
	}
	for _, s := range []struct {
		id, filter string
		handler    paho.MessageHandler
	}{{"bench-devices", shadowResult + "+", answer}, {"bench-devices", echoResult + "+", answer}, {"bench-echo", echoTopic + "+", echo}} {
		if token := clients[s.id].Subscribe(s.filter, 0, s.handler); token.Wait() && token.Error() != nil {
			closeAll()
			return nil, nil, fmt.Errorf("subscribe %s to %s: %w", s.id, s.filter, token.Error())
		}
	}
	return speakers, closeAll, nil
}

// ask sends a message and returns the result in its answer.
func (s *speaker) ask(ctx context.Context, k kind) (result int, err error) {
	s.token++
	if k.writes {
		s.unknown++
	}
	s.client.Publish(k.topic+s.name, 0, false, k.message(s.token))
	timer := time.NewTimer(lostAfter)
	defer timer.Stop()
	for {
		select {
		case answer := <-s.answers:
			var a struct {
				Result      int
				ClientToken string
				Payload     struct{ Version int64 }
			}
			if err := json.Unmarshal(answer, &a); err != nil {
				return 0, fmt.Errorf("device %s: the answer %q: %w", s.name, answer, err)
			}
			if a.ClientToken != fmt.Sprint(s.token) {
				continue // to a message that was given up
			}
			if k.topic == shadowTopic {
				s.version = a.Payload.Version
			}
			if k.writes {
				s.unknown--
				s.written++
			}
			return a.Result, nil
		case <-timer.C:
			return 0, fmt.Errorf("device %s: %w", s.name, errLost)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// must is ask for a message that must be carried out.
func (s *speaker) must(ctx context.Context, k kind) error {
	result, err := s.ask(ctx, k)
	if err == nil && result != 0 {
		err = fmt.Errorf("device %s: result %d", s.name, result)
	}
	return err
}

// awaitDevices waits until the service knows the devices.
func awaitDevices(ctx context.Context, speakers []*speaker) error {
	deadline := time.Now().Add(30 * time.Second)
	for _, s := range speakers {
		for {
			err := s.must(ctx, gets)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the shadow service does not serve: %w", err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// times sends one message after the other and returns how many milliseconds each
// took, sorted.
func times(ctx context.Context, speakers []*speaker, k kind) ([]float64, error) {
	took := make([]float64, roundTrips)
	for i := range took {
		started := time.Now()
		if err := speakers[i%len(speakers)].must(ctx, k); err != nil {
			return nil, err
		}
		took[i] = float64(time.Since(started).Microseconds()) / 1000
	}
	slices.Sort(took)
	return took, nil
}

// bestRate lets more and more devices work at once, until a message is lost, and
// returns the highest rate in messages a second.
func bestRate(ctx context.Context, speakers []*speaker, name string, k kind, step time.Duration) (float64, error) {
	best := 0.0
	for atWork := 1; atWork <= len(speakers); atWork *= 4 {
		rate, err := rateOf(ctx, speakers[:atWork], k, step)
		if errors.Is(err, errLost) && best > 0 {
			progress(fmt.Sprintf("%s: %d at once: %v", name, atWork, err))
			break
		}
		if err != nil {
			return 0, err
		}
		progress(fmt.Sprintf("%s: %d at once: %.0f/s", name, atWork, rate))
		best = max(best, rate)
	}
	return best, nil
}

func rateOf(ctx context.Context, speakers []*speaker, k kind, step time.Duration) (float64, error) {
	counts := make([]int, len(speakers))
	started := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range speakers {
		group.Go(func() error {
			for time.Since(started) < step {
				if err := s.must(ctx, k); err != nil {
					return err
				}
				counts[i]++
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	return float64(total) / time.Since(started).Seconds(), nil
}

// checkVersions compares the stored shadows with what was answered: each update
// raises the version by one, so none is missing and none was carried out twice.
func checkVersions(ctx context.Context, speakers []*speaker) error {
	for _, s := range speakers {
		if err := s.must(ctx, gets); err != nil {
			return err
		}
		if s.version < s.written || s.version > s.written+s.unknown {
			return fmt.Errorf("device %s: its shadow is at version %d after %d updates that were answered and %d that were not",
				s.name, s.version, s.written, s.unknown)
		}
	}
	return nil
}
