import asyncio
import os

from apache_iggy import Consumer, IggyClient, PollingStrategy, SendMessage


async def main():
    client = IggyClient("127.0.0.1:8090")
    await client.connect()
    await client.login_user("iggy", os.environ["SHARDSERVER_ROOT_PASSWORD"])
    await client.create_stream("orders")
    await client.create_topic("orders", "new", partitions_count=1)
    await client.send_messages("orders", "new", 0, [SendMessage(f"order {n}") for n in range(3)])
    first = {
        "consumer": Consumer.Single("me"),
        "polling_strategy": PollingStrategy.First(),
        "count": 10,
        "auto_commit": False,
    }
    for message in await client.poll_messages("orders", "new", **first):
        print(message.offset(), message.payload().decode())


asyncio.run(main())
