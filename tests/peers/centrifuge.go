// centrifuge.go - event streams from Centrifuge, the library that Centrifugo is made of, for the
// judge: centrifuge ADDRESS REDIS. `POST /publish` publishes its body, `GET /subscribe` follows.
//
// Each client is one of Centrifuge's own; its commands are made here from the request, and its
// replies become events. An id is "epoch:offset". Where Centrifuge says that it could not recover,
// the client is told a gap.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/centrifugal/centrifuge"
)

const channel = "j"

type publication struct {
	Data   string `json:"data"`
	Offset uint64 `json:"offset"`
}

type reply struct {
	ID     uint32          `json:"id"`
	Error  json.RawMessage `json:"error"`
	Result struct {
		// Of a subscription.
		Epoch        string        `json:"epoch"`
		Recovered    bool          `json:"recovered"`
		Offset       uint64        `json:"offset"`
		Publications []publication `json:"publications"`
		// Of what is pushed.
		Channel string          `json:"channel"`
		Type    int             `json:"type"`
		Data    json.RawMessage `json:"data"`
	} `json:"result"`
}

const (
	idOfConnect   = 1
	idOfSubscribe = 2
)

type stream struct {
	mutex  sync.Mutex
	out    http.ResponseWriter
	epoch  string
	once   sync.Once
	closed chan struct{}
}

func (s *stream) Name() string                      { return "eventsource" }
func (s *stream) Protocol() centrifuge.ProtocolType { return centrifuge.ProtocolTypeJSON }
func (s *stream) Encoding() centrifuge.EncodingType { return centrifuge.EncodingTypeJSON }
func (s *stream) Close(reason *centrifuge.Disconnect) error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *stream) Write(data []byte) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	select {
	case <-s.closed:
		return io.ErrClosedPipe
	default:
	}
	for decoder := json.NewDecoder(bytes.NewReader(data)); ; {
		var r reply
		if err := decoder.Decode(&r); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if err := s.pass(&r); err != nil {
			return err
		}
	}
	s.out.(http.Flusher).Flush()
	return nil
}

func (s *stream) pass(r *reply) error {
	switch {
	case r.Error != nil:
		return fmt.Errorf("%s", r.Error)
	case r.ID == idOfSubscribe:
		s.epoch = r.Result.Epoch
		if !r.Result.Recovered {
			first := r.Result.Offset
			if n := len(r.Result.Publications); n > 0 {
				first = r.Result.Publications[0].Offset - 1
			}
			fmt.Fprintf(s.out, "event: gap\nid: %s:%d\ndata: {\"reason\":\"not recovered\"}\n\n", s.epoch, first)
		}
		for _, each := range r.Result.Publications {
			s.event(each)
		}
	case r.ID == 0 && r.Result.Channel == channel && r.Result.Type == 0:
		var one publication
		if err := json.Unmarshal(r.Result.Data, &one); err != nil {
			return err
		}
		s.event(one)
	}
	return nil
}

func (s *stream) event(one publication) {
	fmt.Fprintf(s.out, "id: %s:%d\ndata: %s\n\n", s.epoch, one.Offset, one.Data)
}

// Where the client was; without an id before the first message.
func position(node *centrifuge.Node, id string) (epoch string, offset uint64, err error) {
	if colon := strings.LastIndexByte(id, ':'); colon >= 0 {
		offset, err = strconv.ParseUint(id[colon+1:], 10, 64)
		return id[:colon], offset, err
	}
	top, err := node.History(channel)
	return top.Epoch, 0, err
}

func subscribe(node *centrifuge.Node, out http.ResponseWriter, request *http.Request) {
	epoch, offset, err := position(node, request.Header.Get("Last-Event-ID"))
	if err != nil {
		http.Error(out, err.Error(), http.StatusServiceUnavailable)
		return
	}
	out.Header().Set("Content-Type", "text/event-stream")
	out.WriteHeader(http.StatusOK)
	out.(http.Flusher).Flush()
	s := &stream{out: out, closed: make(chan struct{})}
	context := centrifuge.SetCredentials(request.Context(), &centrifuge.Credentials{UserID: "anyone"})
	client, end, err := centrifuge.NewClient(context, node, s)
	if err != nil {
		return
	}
	defer end()
	client.Handle([]byte(fmt.Sprintf(`{"id":%d,"params":{}}`, idOfConnect)))
	command, _ := json.Marshal(map[string]interface{}{
		"id": idOfSubscribe, "method": 1, "params": map[string]interface{}{
			"channel": channel, "recover": true, "epoch": epoch, "offset": offset,
		}})
	client.Handle(command)
	select {
	case <-request.Context().Done():
		s.Close(nil)
	case <-s.closed:
	}
	s.mutex.Lock() // nobody writes to `out` any more
	defer s.mutex.Unlock()
}

func publish(node *centrifuge.Node, out http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	data, _ := json.Marshal(string(body))
	if _, err = node.Publish(channel, data, centrifuge.WithHistory(1000000, time.Hour)); err != nil {
		http.Error(out, err.Error(), http.StatusServiceUnavailable)
	}
}

func main() {
	config := centrifuge.DefaultConfig
	config.LogLevel = centrifuge.LogLevelError
	config.LogHandler = func(e centrifuge.LogEntry) { log.Printf("%s: %v", e.Message, e.Fields) }
	config.ClientQueueMaxSize = 64 << 20 // a whole recovery
	config.ClientPresenceUpdateInterval = time.Second
	config.ClientChannelPositionCheckDelay = time.Second
	node, err := centrifuge.New(config)
	if err != nil {
		log.Fatal(err)
	}
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnSubscribe(func(_ centrifuge.SubscribeEvent, answer centrifuge.SubscribeCallback) {
			answer(centrifuge.SubscribeReply{Options: centrifuge.SubscribeOptions{Recover: true}}, nil)
		})
	})
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: os.Args[2]})
	if err != nil {
		log.Fatal(err)
	}
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{
		UseStreams: true, Shards: []*centrifuge.RedisShard{shard}})
	if err != nil {
		log.Fatal(err)
	}
	node.SetBroker(broker)
	if err := node.Run(); err != nil { // without a Redis; whoever supervises it starts it again
		log.Print(err)
		time.Sleep(100 * time.Millisecond)
		log.Fatal(syscall.Exec(os.Args[0], os.Args, os.Environ()))
	}
	http.HandleFunc("/publish", func(out http.ResponseWriter, request *http.Request) { publish(node, out, request) })
	http.HandleFunc("/subscribe", func(out http.ResponseWriter, request *http.Request) { subscribe(node, out, request) })
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
