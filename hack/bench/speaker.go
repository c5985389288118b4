package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"batchtask.dev/operator/internal/shadow"
)

// Topics of the shadow service, and those of messages that another client sends back.
const (
	shadowTopic  = shadow.OperationPrefix + productID + "/"
	shadowResult = shadow.ResultPrefix + productID + "/"
	echoTopic    = "echo/there/"
	echoResult   = "echo/back/"
	lostAfter    = 5 * time.Second
)

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
		c, err := connectClient(brokerURL, id)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		clients[id] = c
	}
	byName := map[string]*speaker{}
	for _, name := range names {
		// Room for the answer to a message that was given up for lost.
		s := &speaker{name: name, client: clients["bench-devices"], answers: make(chan []byte, 16)}
		speakers, byName[name] = append(speakers, s), s
	}
	answer := func(_ paho.Client, m paho.Message) {
		s := byName[m.Topic()[strings.LastIndexByte(m.Topic(), '/')+1:]]
		if s == nil {
			return // a delta for a device that does not speak
		}
		select {
		case s.answers <- m.Payload():
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
